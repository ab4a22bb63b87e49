// The CPU kernels: plain loops over operations.h that the compiler turns into vector instructions.
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
// Left alone GCC uses half of a 512-bit register, for fear of a lower clock that newer CPUs lack.
#pragma GCC target("prefer-vector-width=512")
#endif

#include "kernels.h"

#include <algorithm>
#include <memory>

#include "../derivative_code.h"
#include "../operations.h"
#include "elements.h"

#if defined(__clang__)
#define GELU_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
// Unrolled, as clang does by itself: with memory in the way 3 to 10% faster on a Xeon.
#define GELU_INDEPENDENT _Pragma("GCC ivdep") _Pragma("GCC unroll 4")
#endif

namespace custom_gelu::cpu {
namespace {

// Elements a thread takes at least: some 10 microseconds of work, more than waking it costs.
constexpr int64_t kGrain = 16384;
// Into how many parts rows are divided to sum them: more than threads, few enough to add up.
constexpr int64_t kChunks = 64;

template <typename F, typename Element>
struct Pointers {
  const Element* in[F::kInputs];
  Element* out[F::kOutputs];
  Pointers() = default;
  Pointers(const Operands& o, int64_t row, int64_t column) {
    for (int k = 0; k < F::kInputs; ++k) {
      in[k] = static_cast<const Element*>(o.inputs[k]) + row * o.input_strides[k] + column;
    }
    for (int k = 0; k < F::kOutputs; ++k) {
      out[k] = static_cast<Element*>(o.outputs[k]) + row * o.output_strides[k] + column;
    }
  }
};

template <typename F, typename Element>
void run(const Pointers<F, Element> pointers, int64_t n) {
  // The iterations are independent although an output may be an input: it is so at the same place.
  GELU_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    typename F::Real arguments[F::kInputs], results[F::kOutputs];
    for (int k = 0; k < F::kInputs; ++k) arguments[k] = load(pointers.in[k] + i);
    F::run(arguments, results);
    for (int k = 0; k < F::kOutputs; ++k) store(pointers.out[k] + i, results[k]);
  }
}

// The same by way of floats that stay in the first cache.
template <typename F, typename Element>
void run_apart(Pointers<F, Element> pointers, int64_t n) {
  constexpr int64_t kRun = 256;
  alignas(64) float in[F::kInputs][kRun], out[F::kOutputs][kRun];
  Pointers<F, float> floats;
  for (int k = 0; k < F::kInputs; ++k) floats.in[k] = in[k];
  for (int k = 0; k < F::kOutputs; ++k) floats.out[k] = out[k];
  for (int64_t first = 0; first < n; first += kRun) {
    const int64_t count = std::min(kRun, n - first);
    for (int k = 0; k < F::kInputs; ++k) load_run(pointers.in[k] + first, in[k], count);
    run(floats, count);
    for (int k = 0; k < F::kOutputs; ++k) store_run(pointers.out[k] + first, out[k], count);
  }
}

template <template <typename, Mode> class Operation>
struct Elementwise {
  const Operands& o;
  template <typename Element, typename Precision, Mode kMode>
  void operator()() const {
    using F = Operation<Precision, kMode>;
    parallel_for(o.rows * o.width, kGrain, [this](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t row = begin / o.width, column = begin % o.width;
        const int64_t count = std::min(o.width - column, end - begin);
        const Pointers<F, Element> pointers(o, row, column);
        if constexpr (kConvertedApart<Element>) {
          run_apart(pointers, count);
        } else {
          run(pointers, count);
        }
        begin += count;
      }
    });
  }
};

struct BiasBackward {
  const Operands& o;

  template <typename Element, typename Precision, Mode kMode>
  void operator()() const {
    using Real = typename Precision::Real;
    const int64_t chunks = std::clamp<int64_t>(o.rows, 1, kChunks);
    const auto sums = std::make_unique<Real[]>(chunks * o.width);  // zeros
    parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = o.rows * chunk / chunks, last = o.rows * (chunk + 1) / chunks;
        for (int64_t row = first; row < last; ++row) {
          add_row<Element, Precision, kMode>(row, &sums[chunk * o.width]);
        }
      }
    });
    auto* out = static_cast<Element*>(o.outputs[1]);
    parallel_for(o.width, kGrain / chunks + 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        for (int64_t c = begin; c < end; ++c) sums[c] += sums[chunk * o.width + c];
      }
      for (int64_t c = begin; c < end; ++c) store(out + c, sums[c]);
    });
  }

  template <typename Element, typename Precision, Mode kMode, typename Real>
  void add_row(int64_t row, Real* sums) const {
    const auto* grad = static_cast<const Element*>(o.inputs[0]) + row * o.input_strides[0];
    const auto* x = static_cast<const Element*>(o.inputs[1]) + row * o.input_strides[1];
    const auto* bias = static_cast<const Element*>(o.inputs[2]);
    auto* out = static_cast<Element*>(o.outputs[0]) + row * o.output_strides[0];
    const int64_t n = o.width;
    GELU_INDEPENDENT
    for (int64_t c = 0; c < n; ++c) {
      const Real dx =
          load(grad + c) * gelu_derivative<Precision, kMode>(load(x + c) + load(bias + c));
      sums[c] += dx;
      store(out + c, dx);
    }
  }
};

// The codes of one bit are made in whole bytes: a thread's elements begin at a multiple of 8.
template <typename Function>
void for_groups(int64_t count, const Function& function) {
  parallel_for((count + 7) / 8, kGrain / 8,
               [&](int64_t begin, int64_t end) { function(8 * begin, std::min(8 * end, count)); });
}

struct Encode {
  const Coded& c;
  template <typename Element, typename Precision, Mode kMode>
  void operator()() const {
    const auto* x = static_cast<const Element*>(c.input);
    auto* out = static_cast<Element*>(c.output);
    const auto codes = c.codes;
    for_groups(c.count, [=, this](int64_t begin, int64_t end) {
      GELU_INDEPENDENT
      for (int64_t i = begin; i < end; ++i) {
        store(out + i, gelu_value<Precision, kMode>(load(x + i)));
      }
      if (c.code == Code::kEight) {
        // Pointers of its own: for all the compiler knows a byte may be part of what is captured.
        const Element* const from = x;
        uint8_t* const to = codes;
        GELU_INDEPENDENT
        for (int64_t i = begin; i < end; ++i) {
          to[i] = eight_bits(gelu_derivative<Precision, kMode>(load(from + i)));
        }
      } else {
        for (int64_t i = begin; i < end; i += 8) {
          unsigned bits = 0;
          for (int k = 0; k < 8 && i + k < end; ++k) {
            bits |= unsigned(right_of_minimum<kMode>(load(x + i + k))) << k;
          }
          codes[i / 8] = uint8_t(bits);
        }
      }
    });
  }
};

struct Decode {
  const Coded& c;
  template <typename Element, typename Precision, Mode kMode>
  void operator()() const {
    const auto* grad = static_cast<const Element*>(c.input);
    const auto* value = static_cast<const Element*>(c.value);
    auto* out = static_cast<Element*>(c.output);
    const uint8_t* codes = c.codes;
    for_groups(c.count, [=, this](int64_t begin, int64_t end) {
      if (c.code == Code::kEight) {
        GELU_INDEPENDENT
        for (int64_t i = begin; i < end; ++i) {
          store(out + i, load(grad + i) * from_eight_bits(codes[i]));
        }
      } else {
        GELU_INDEPENDENT
        for (int64_t i = begin; i < end; ++i) {
          const bool right = ((codes[i / 8] >> (i % 8)) & 1) != 0;
          store(out + i,
                load(grad + i) * derivative_from_value<kMode>(float(load(value + i)), right));
        }
      }
    });
  }
};

}  // namespace

void elementwise(Op op, const Operands& o) {
  switch (op) {
    case Op::kGelu:
      return dispatch<Elements>(o.type, o.mode, Elementwise<Gelu>{o});
    case Op::kGeluBackward:
      return dispatch<Elements>(o.type, o.mode, Elementwise<GeluBackward>{o});
    case Op::kGeluDoubleBackward:
      return dispatch<Elements>(o.type, o.mode, Elementwise<GeluDoubleBackward>{o});
    case Op::kBiasGelu:
      return dispatch<Elements>(o.type, o.mode, Elementwise<BiasGelu>{o});
    case Op::kGeglu:
      return dispatch<Elements>(o.type, o.mode, Elementwise<Geglu>{o});
    case Op::kGegluBackward:
      return dispatch<Elements>(o.type, o.mode, Elementwise<GegluBackward>{o});
  }
}

void bias_gelu_backward(const Operands& o) {
  dispatch<Elements>(o.type, o.mode, BiasBackward{o});
}

void encode(const Coded& coded) {
  dispatch<Elements>(coded.type, coded.mode, Encode{coded});
}

void decode(const Coded& coded) {
  dispatch<Elements>(coded.type, coded.mode, Decode{coded});
}

}  // namespace custom_gelu::cpu
