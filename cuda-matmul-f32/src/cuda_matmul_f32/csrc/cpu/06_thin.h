// CPU 6: products with few rows or few columns, straight from where the matrices lie.
//
// Removes: packing and padding where they cost more than the product. A matrix times a vector does
//   two operations on each value of the matrix, so reading it once is all the time there should be;
//   rung 5 reads it, writes it in another order, reads it again, and computes a whole register tile
//   of outputs of which it keeps one row or column. Whatever is not thin goes to rung 5.
// Leaves: layouts in which neither the rows of B nor both operands along K are adjacent, which go
//   through rung 5 still; and the time that memory takes.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/02_reordered.h"
#include "cpu/05_threaded.h"
#include "cpu/clear.h"
#include "cpu/micro_kernel.h"
#include "problem.h"

constexpr int64_t kThin = 4;            // rows or columns that count as few
constexpr int64_t kThinWork = 1 << 18;  // multiply-adds that are worth waking a thread for
constexpr int64_t kThinCols = 256;      // columns that a thread takes at least: 16 cache lines

// The sum of a[k] * b[k]. Four vectors of sums: each addition waits some cycles for the one before.
inline float dot(const float* a, const float* b, int64_t n) {
  constexpr int kSums = 4;
  Vector sums[kSums] = {};
  int64_t k = 0;
  for (; k + kSums * kVectorFloats <= n; k += kSums * kVectorFloats) {
    for (int s = 0; s < kSums; ++s) {
      sums[s] += load(a + k + s * kVectorFloats) * load(b + k + s * kVectorFloats);
    }
  }
  const Vector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = 0.0f;
  for (int lane = 0; lane < kVectorFloats; ++lane) total += sum[lane];
  for (; k < n; ++k) total += a[k] * b[k];
  return total;
}

// Both operands are adjacent along K: each output is a dot product of two runs of memory. Threads
// share the long side; the few lines of the other stay in cache.
inline void dot_products(const Problem& p) {
  const bool tall = p.M >= p.N;
  const int64_t many = tall ? p.M : p.N, few = tall ? p.N : p.M;
  const int64_t work = few * std::max<int64_t>(p.K, 1);
  at::parallel_for(0, p.batch * many, ceil_div(kThinWork, work), [&](int64_t line, int64_t last) {
    for (; line < last; ++line) {
      const Problem one = p.at(line / many);
      for (int64_t x = 0; x < few; ++x) {
        const int64_t i = tall ? line % many : x;
        const int64_t j = tall ? x : line % many;
        one.c[i * p.c_stride + j] = dot(&one.a(i, 0), &one.b(0, j), p.K);
      }
    }
  });
}

// Few rows of A, and the rows of B are adjacent: C's rows stay in cache while those of B pass by
// once, in runs as long as a thread's share of the columns, which is how memory is fastest.
inline void scaled_rows(const Problem& p) {
  constexpr int64_t kStepK = 8;  // rows of B that serve all rows of A before the next
  clear(p);
  for (int64_t k0 = 0; k0 < p.K; k0 += kStepK) {
    for (int64_t i = 0; i < p.M; ++i) {
      for (int64_t k = k0; k < std::min(k0 + kStepK, p.K); ++k) {
        add_scaled_row(p.c + i * p.c_stride, p.a(i, k), &p.b(k, 0), 1, p.N);
      }
    }
  }
}

// Threads share the columns; of a batch each takes whole products first.
inline void scaled_rows_threaded(const Problem& p) {
  const int64_t parts = ceil_div(p.N, kThinCols);
  const int64_t work = p.M * std::min(p.N, kThinCols) * std::max<int64_t>(p.K, 1);
  at::parallel_for(0, p.batch * parts, ceil_div(kThinWork, work), [&](int64_t part, int64_t last) {
    while (part < last) {  // all that this thread has of one product, at once
      const int64_t product = part / parts, col = part % parts * kThinCols;
      const int64_t end = std::min(last, (product + 1) * parts);
      Problem mine = p.at(product);
      mine.N = std::min((end - part) * kThinCols, p.N - col);
      mine.b.data = &mine.b(0, col);
      mine.c += col;
      scaled_rows(mine);
      part = end;
    }
  });
}

inline void thin(const Problem& p) {
  const bool few_rows = p.M <= kThin, few_cols = p.N <= kThin;
  if ((few_rows || few_cols) && p.a.col_stride == 1 && p.b.row_stride == 1) {
    dot_products(p);
  } else if (few_rows && p.b.col_stride == 1) {
    scaled_rows_threaded(p);
  } else {
    threaded(p);
  }
}
