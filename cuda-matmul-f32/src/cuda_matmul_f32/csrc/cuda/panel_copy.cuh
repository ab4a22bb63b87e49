// Asynchronous copies of a panel, kLines x kDepth, from global into shared memory as [k][line],
// whatever the matrix's strides; for rungs 8 to 10. "Lines" are A's rows or B's columns.
//
// cp.async (compute capability 8.0) writes shared memory without passing through registers, so a
// thread starts the copies for panels ahead and goes on computing. A copy of 16 bytes needs lines
// adjacent in memory and aligned; a copy of 4 bytes may go anywhere, so it transposes on its way
// and takes any stride. What lies past the matrix's edge is not read and becomes zero.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "problem.h"

enum class Copy {
  kVectors,  // lines adjacent and aligned: 16 bytes a copy, a warp along lines
  kAlongK,   // steps of K adjacent: 4 bytes, a warp takes a full 32-byte sector of each of 4 lines
  kAlongLines,  // anything else: 4 bytes, a warp along lines
};

// A matrix as the copies see it: A, or B with rows and columns exchanged.
struct Lines {
  const float* first;
  int64_t line_stride;
  int64_t k_stride;
  int64_t batch_stride;
};

HOST_DEVICE Lines lines_of_a(const Problem& p) {
  return {p.a.data, p.a.row_stride, p.a.col_stride, p.a.batch_stride};
}
HOST_DEVICE Lines lines_of_b(const Problem& p) {
  return {p.b.data, p.b.col_stride, p.b.row_stride, p.b.batch_stride};
}

inline Copy copy_for(const Lines& m) {
  const bool aligned = m.k_stride % 4 == 0 && m.batch_stride % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(m.first) % 16 == 0;
  if (m.line_stride == 1 && aligned) return Copy::kVectors;
  return m.k_stride == 1 ? Copy::kAlongK : Copy::kAlongLines;
}

// Calls f(copy) with the copy as a compile-time constant.
template <class F>
cudaError_t with_copy(Copy copy, const F& f) {
  switch (copy) {
    case Copy::kVectors:
      return f(std::integral_constant<Copy, Copy::kVectors>{});
    case Copy::kAlongK:
      return f(std::integral_constant<Copy, Copy::kAlongK>{});
    default:
      return f(std::integral_constant<Copy, Copy::kAlongLines>{});
  }
}

// Calls f(a, b) with the best copies that the operands' strides allow.
template <class F>
cudaError_t with_copies(const Problem& p, const F& f) {
  return with_copy(copy_for(lines_of_a(p)), [&](auto a) {
    return with_copy(copy_for(lines_of_b(p)), [&](auto b) { return f(a, b); });
  });
}

// Copies kFloats floats, 4 or 1, of which only the first `valid` are read; the others become zero.
template <int kFloats>
__device__ __forceinline__ void copy_async(float* to, const float* from, int valid) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kFloats == 4) {  // past L1: the panel is read again from shared memory only
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
                 "r"(valid * 4)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(from),
                 "r"(valid * 4)
                 : "memory");
  }
}

// The calling thread's share, one of kThreads, of all panels along K of one tile. kStride is the
// distance from one k to the next in shared memory: kLines + 4 keeps the transposing copies and the
// reads free of bank conflicts.
template <Copy kCopy, int kLines, int kDepth, int kThreads, int kStride, int kEdgeUnroll = 1>
class PanelCopy {
 public:
  // The panel's first line is `line` of `count`; K starts at `k`.
  __device__ PanelCopy(const Lines& m, int64_t line, int64_t count, int64_t k, int thread)
      : line0_(kCopy == Copy::kAlongK ? thread / 8 : thread % kAcross * kFloats),
        k0_(kCopy == Copy::kAlongK ? thread % 8 : thread / kAcross),
        lines_(static_cast<int>(count - line < kLines ? count - line : kLines)),
        line_stride_(m.line_stride),
        k_stride_(m.k_stride),
        from_(m.first + (line + line0_) * m.line_stride + (k + k0_) * m.k_stride) {}

  // Starts the copies of the next panel; `depth` steps of K are left.
  __device__ void start(float* to, int64_t depth) {
    to += k0_ * kStride + line0_;
    if (lines_ == kLines && depth >= kDepth) {
      copy<false>(to, 0);
    } else {
      copy<true>(to, static_cast<int>(depth < kDepth ? depth : kDepth));
    }
    from_ += kDepth * k_stride_;
  }

 private:
  static constexpr int kFloats = kCopy == Copy::kVectors ? 4 : 1;
  static constexpr int kAcross =  // threads side by side along lines
      kLines / kFloats < kThreads ? kLines / kFloats : kThreads;
  static_assert(kThreads % 8 == 0 && kDepth % 8 == 0 && kThreads % kAcross == 0);

  template <bool kAtEdge>
  __device__ void copy(float* to, int depth) {
    const float* from = from_;
    // Unrolled, which leaves little but the copies themselves. At an edge, where each has its
    // tests, only where the kernel has registers for it: rung 8 lost 4% in the middle of C to
    // faster edges, and a producer of rung 9 that spills costs the consumers a register, too
    // (LOG.md).
    constexpr int kUnroll = kAtEdge ? kEdgeUnroll : 4;
    if constexpr (kCopy == Copy::kAlongK) {
#pragma unroll kUnroll
      for (int line = 0; line < kLines; line += kThreads / 8) {
#pragma unroll
        for (int k = 0; k < kDepth; k += 8) {
          copy_one<kAtEdge>(to + k * kStride + line, from + k, line, k, depth);
        }
        from += kThreads / 8 * line_stride_;
      }
    } else {
#pragma unroll kUnroll
      for (int k = 0; k < kDepth; k += kThreads / kAcross) {
#pragma unroll
        for (int line = 0; line < kLines; line += kAcross * kFloats) {
          copy_one<kAtEdge>(to + k * kStride + line,
                            kFloats == 4 ? from + line : from + line * line_stride_, line, k,
                            depth);
        }
        from += kThreads / kAcross * k_stride_;
      }
    }
  }

  template <bool kAtEdge>
  __device__ void copy_one(float* to, const float* from, int line, int k, int depth) {
    int valid = kFloats;
    if (kAtEdge) valid = k0_ + k < depth ? min(max(lines_ - line0_ - line, 0), kFloats) : 0;
    copy_async<kFloats>(to, valid > 0 ? from : from_, valid);
  }

  const int line0_, k0_, lines_;
  const int64_t line_stride_, k_stride_;
  const float* from_;
};
