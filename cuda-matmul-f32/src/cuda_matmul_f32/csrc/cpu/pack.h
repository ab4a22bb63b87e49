// Packing for CPU rungs 4 to 6: copy a block of A or B into the order in which the micro-kernel
// reads it, so that its reads are one sequential stream whatever the matrix's strides were.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

// Scratch memory aligned to a cache line, grown but never shrunk: packing needs it on each call,
// and fresh pages from the system would cost more than the packing.
class Scratch {
 public:
  float* at_least(int64_t floats) {
    if (floats > size_) {
      data_.reset();  // before the new one: never both at once
      size_ = 0;
      data_.reset(static_cast<float*>(::operator new(floats * sizeof(float), kAlignment)));
      size_ = floats;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

// Packs up to kWidth lines (rows of A, columns of B), each depth long, as depth groups of kWidth
// values; lines beyond the matrix's edge become zeros.
template <int kWidth>
void pack_panel(const float* from, int64_t line_stride, int64_t depth_stride, int64_t lines,
                int64_t depth, float* to) {
  lines = std::min<int64_t>(lines, kWidth);
  if (lines < kWidth) std::fill_n(to, depth * kWidth, 0.0f);
  if (line_stride == 1 && lines == kWidth) {
    for (int64_t k = 0; k < depth; ++k) {
      std::memcpy(to + k * kWidth, from + k * depth_stride, kWidth * sizeof(float));
    }
    return;
  }
  // All lines at once, in step: the writes are one stream, and the lines that are read are as many
  // streams, which the processor fetches ahead of; line by line it would wait for memory.
  for (int64_t k = 0; k < depth; ++k, to += kWidth, from += depth_stride) {
    if (lines == kWidth) {
      for (int i = 0; i < kWidth; ++i) to[i] = from[i * line_stride];
    } else {
      for (int64_t i = 0; i < lines; ++i) to[i] = from[i * line_stride];
    }
  }
}
