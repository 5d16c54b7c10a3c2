#define IFRU_VECTOR_BYTES 16
#define IFRU_VECTOR_REGISTERS 16
#define IFRU_TABLE kBaselineTable
#include "unit.inl"
