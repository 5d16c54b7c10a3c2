#define IFRU_VECTOR_BYTES 32
#define IFRU_VECTOR_REGISTERS 16
#define IFRU_TABLE kAvx2Table
#include "unit.inl"
