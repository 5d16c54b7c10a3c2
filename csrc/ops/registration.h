// Where the ops are registered. The emulated build (csrc/testing/simt) has a namespace of its own,
// in which the CUDA kernels work on the CPU's tensors.
#pragma once

#include <torch/csrc/stable/library.h>

#if defined(IFRU_EMULATED)
#define IFRU_NAMESPACE ifru_ext_emulated
#define IFRU_CUDA_KEY CPU
#else
#define IFRU_NAMESPACE ifru_ext
#define IFRU_CUDA_KEY CUDA
#endif

// torch's macros paste their arguments together: a level between, so that ours are expanded first.
#define IFRU_LIBRARY_OF(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define IFRU_LIBRARY_IMPL_OF(ns, key, m) STABLE_TORCH_LIBRARY_IMPL(ns, key, m)

#define IFRU_SCHEMAS(m) IFRU_LIBRARY_OF(IFRU_NAMESPACE, m)
#define IFRU_CUDA_KERNELS(m) IFRU_LIBRARY_IMPL_OF(IFRU_NAMESPACE, IFRU_CUDA_KEY, m)
