// The register tile of CPU rungs 4 to 6: kRows x kCols outputs held in vector registers.
//
// Per step of k it loads kCols values of B (as kVectors vectors) and kRows values of A, and does
// kRows x kVectors vector FMAs on them: with AVX-512 that is 28 FMAs for 16 loads and no store,
// where rung 3 does one FMA for two loads and a store.
// Source of the idea: Goto and van de Geijn 2008, "Anatomy of high-performance matrix
// multiplication"; the BLIS project's micro-kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

// kRows x kVectors accumulators, kVectors of B and one broadcast of A fit the register file
// (32 registers with AVX-512 and NEON, 16 with AVX2 and SSE), or the compiler spills to memory.
#if defined(__AVX512F__)
constexpr int kVectorFloats = 16, kRows = 14, kVectors = 2;
#elif defined(__AVX__)
constexpr int kVectorFloats = 8, kRows = 6, kVectors = 2;
#elif defined(__aarch64__)
constexpr int kVectorFloats = 4, kRows = 8, kVectors = 3;
#else
constexpr int kVectorFloats = 4, kRows = 6, kVectors = 2;
#endif
constexpr int kCols = kVectorFloats * kVectors;

// GCC's and Clang's own vector type: arithmetic on it is vector instructions, without intrinsics
// and so without one version of this file per instruction set.
typedef float Vector __attribute__((vector_size(kVectorFloats * sizeof(float))));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// C[rows, cols] (+)= A panel x B panel. The panels are packed (pack.h): depth steps of kRows and of
// kCols values, zero beyond the matrix's edge. What those zeros add up to, NaN included when
// they meet an Inf, is in outputs beyond the edge, which are not stored.
inline void micro_kernel(const float* a, const float* b, int64_t depth, float* c, int64_t c_stride,
                         int64_t rows, int64_t cols, bool accumulate) {
  const bool is_whole = rows >= kRows && cols >= kCols;
  if (is_whole) {  // C's tile is asked for now, so that it is there when the sums are
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        __builtin_prefetch(c + i * c_stride + v * kVectorFloats, 1);
      }
    }
  }
  Vector sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k, a += kRows, b += kCols) {
    Vector b_row[kVectors];
    for (int v = 0; v < kVectors; ++v) b_row[v] = load(b + v * kVectorFloats);
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a[i] * b_row[v];
    }
  }

  if (is_whole) {
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        float* to = c + i * c_stride + v * kVectorFloats;
        if (accumulate) sum[i][v] += load(to);
        std::memcpy(to, &sum[i][v], sizeof(Vector));
      }
    }
    return;
  }
  // At C's edge: by way of memory, from which a part of a vector can be taken.
  float out[kRows][kCols];
  std::memcpy(out, sum, sizeof out);
  for (int64_t i = 0; i < std::min<int64_t>(rows, kRows); ++i) {
    float* c_row = c + i * c_stride;
    for (int64_t j = 0; j < std::min<int64_t>(cols, kCols); ++j) {
      c_row[j] = accumulate ? c_row[j] + out[i][j] : out[i][j];
    }
  }
}
