#define IFRU_VECTOR_BYTES 64
#define IFRU_VECTOR_REGISTERS 32
#define IFRU_TABLE kAvx512Table
#include "unit.inl"
