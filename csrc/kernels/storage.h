// Sixteen-bit storage of features; computed with as float.
#pragma once

#include <cstdint>

namespace ifru {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace ifru
