// Which instruction set the CPU kernels use: the best that the processor has, or what the
// environment variable IFRU_EXT_ISA names.
#pragma once

#include <string>

namespace ifru::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

const char* isa_name(Isa isa);

// Comma-separated names of the instruction sets that this build has and this processor can run.
std::string supported_isas();

// Throws std::runtime_error when IFRU_EXT_ISA names an unknown or unsupported set: running
// something else than what was asked for would falsify a measurement.
Isa select_isa();

}  // namespace ifru::cpu
