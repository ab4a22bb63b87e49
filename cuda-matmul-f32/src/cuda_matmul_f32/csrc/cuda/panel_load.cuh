// Loading a panel through registers, for rungs 5 to 7: 128 lines (rows of A or columns of B) by 16
// steps of K, from global into shared memory as [k][line], by 256 threads.
#pragma once

#include "cuda/launch.cuh"

constexpr int kLines = 128;     // rows of A, columns of B that a block loads
constexpr int kPanelStep = 16;  // steps of K between two barriers
constexpr int kPanelThreads = 256;
constexpr int kPanelStride = kLines + 4;        // rows on 16 bytes, and off one single bank
using Panel = float[kPanelStep][kPanelStride];  // [k][line]

// Copies panels of A (lines are its rows) or of B (its columns) into shared memory, with zeros past
// the matrix's edge. Neighbouring threads read along whichever direction is contiguous in memory.
// A thread's values lie one fixed step apart, so it keeps one pointer instead of eight: with eight
// for each matrix the sums no longer fit in registers.
class PanelLoader {
 public:
  __device__ PanelLoader(const float* first, int64_t line_stride, int64_t k_stride, int64_t lines)
      : lines_(static_cast<int>(lines < kLines ? lines : kLines)) {
    const bool along_k = k_stride < line_stride;
    const int thread = threadIdx.x;
    line_ = along_k ? thread / kPanelStep : thread % kLines;
    k_ = along_k ? thread % kPanelStep : thread / kLines;
    line_step_ = along_k ? kPanelThreads / kPanelStep : 0;
    k_step_ = along_k ? 0 : kPanelThreads / kLines;
    from_ = first + line_ * line_stride + k_ * k_stride;
    step_ = line_step_ * line_stride + k_step_ * k_stride;
    advance_ = kPanelStep * k_stride;
  }

  // Loads the next panel along K; `depth` steps of K are left.
  __device__ void load(Panel& to, int depth) {
    const float* from = from_;
    int line = line_, k = k_;
#pragma unroll
    for (int i = 0; i < kLines * kPanelStep / kPanelThreads; ++i) {
      to[k][line] = line < lines_ && k < depth ? *from : 0.0f;
      line += line_step_;
      k += k_step_;
      from += step_;
    }
    from_ += advance_;
  }

 private:
  const float* from_;
  int64_t step_, advance_;
  int line_, k_, line_step_, k_step_, lines_;
};

// The same with 16 bytes a load: four adjacent lines, which shared memory takes as one vector, or
// four adjacent steps of K, which it takes one by one, in four rows of the panel.
class PanelVectorLoader {
 public:
  // Whether every vector lies within the matrix and on a multiple of 16 bytes.
  static bool fits(const Matrix& m, int64_t line_stride, int64_t k_stride, int64_t lines,
                   int64_t K) {
    const bool along_k = k_stride == 1 && line_stride % 4 == 0 && K % 4 == 0;
    const bool along_lines = line_stride == 1 && k_stride % 4 == 0 && lines % 4 == 0;
    return (along_k || along_lines) && m.batch_stride % 4 == 0 &&
           reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  }

  __device__ PanelVectorLoader(const float* first, int64_t line_stride, int64_t k_stride,
                               int64_t lines)
      : along_k_(k_stride == 1 && line_stride != 1),
        lines_(static_cast<int>(lines < kLines ? lines : kLines)),
        line_(along_k_ ? threadIdx.x / 4 : threadIdx.x % 32 * 4),
        k_(along_k_ ? threadIdx.x % 4 * 4 : threadIdx.x / 32),
        step_(along_k_ ? 64 * line_stride : 8 * k_stride),
        advance_(kPanelStep * k_stride),
        from_(first + line_ * line_stride + k_ * k_stride) {}

  // Loads the next panel along K; `depth` steps of K are left.
  __device__ void load(Panel& to, int depth) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int line = line_ + (along_k_ ? 64 * i : 0);
      const int k = k_ + (along_k_ ? 0 : 8 * i);
      float4 four = {};
      if (line < lines_ && k < depth) four = *reinterpret_cast<const float4*>(from_ + i * step_);
      if (along_k_) {
        to[k][line] = four.x, to[k + 1][line] = four.y;
        to[k + 2][line] = four.z, to[k + 3][line] = four.w;
      } else {
        *reinterpret_cast<float4*>(&to[k][line]) = four;
      }
    }
    from_ += advance_;
  }

 private:
  const bool along_k_;
  const int lines_, line_, k_;
  const int64_t step_, advance_;
  const float* from_;
};

// Calls f(loader for A, loader for B) with null pointers of the loaders' types: vectors where the
// matrix allows them, else value by value.
template <class F>
cudaError_t with_loaders(const Problem& p, const F& f) {
  const bool a = PanelVectorLoader::fits(p.a, p.a.row_stride, p.a.col_stride, p.M, p.K);
  const bool b = PanelVectorLoader::fits(p.b, p.b.col_stride, p.b.row_stride, p.N, p.K);
  PanelVectorLoader* const vectors = nullptr;
  PanelLoader* const values = nullptr;
  if (a && b) return f(vectors, vectors);
  if (a) return f(vectors, values);
  if (b) return f(values, vectors);
  return f(values, values);
}
