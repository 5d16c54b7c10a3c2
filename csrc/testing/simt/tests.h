// The harness of csrc/tests, and what the emulated tests share.
#pragma once

#include "../../tests/check.h"
#include "../../tests/values.h"

namespace ifru::test {

void test_emulation();
void test_launch();
void test_propagate();
void test_product();
void test_vector();
void test_derivatives();
void test_diagonal();
void test_pairwise();

}  // namespace ifru::test
