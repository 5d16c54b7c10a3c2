// What the tests of kernels share: values, comparison with plain double loops, instruction sets.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "../kernels/cpu/isa.h"
#include "../kernels/cpu/kernels.h"
#include "check.h"
#include "values.h"

namespace ifru::test {

template <class T>
void check_close(const std::vector<T>& got, const std::vector<double>& expected,
                 double tolerance = sizeof(T) == 4 ? 1e-4 : 1e-12) {
  CHECK(error_of(got, expected) <= tolerance);
}

// Calls check_table(table) for every instruction set that this processor has.
template <class CheckTable>
void for_each_table(CheckTable&& check_table) {
  const std::string supported = cpu::supported_isas();
  check_table(cpu::kBaselineTable);
#if defined(IFRU_X86_ISA_UNITS)
  if (supported.find("avx2") != std::string::npos) check_table(cpu::kAvx2Table);
  if (supported.find("avx512") != std::string::npos) check_table(cpu::kAvx512Table);
#endif
  std::printf("instruction sets tested: %s\n", supported.c_str());
}

}  // namespace ifru::test
