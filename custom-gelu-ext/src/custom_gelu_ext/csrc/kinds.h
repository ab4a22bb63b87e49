// What a kernel is asked for: the operation, the element type, which of the two GELUs, and on what.
#pragma once

#include <cstdint>

namespace custom_gelu {

enum class Type { kFloat32, kFloat64, kFloat16, kBFloat16 };

// kExact: x Phi(x), Phi the normal distribution. kTanh: x (1 + tanh(u)) / 2 with
// u = sqrt(2/pi) (x + 0.044715 x^3), the approximation that GPT-2 was trained with.
enum class Mode { kExact, kTanh };

// The elementwise operations; operations.h says what each does with one element.
enum class Op { kGelu, kGeluBackward, kGeluDoubleBackward, kBiasGelu, kGeglu, kGegluBackward };

// The tensors of an elementwise operation: rows of width elements. The elements of a row lie next
// to each other; from one row to the next it is a stride, counted in elements, which is 0 where all
// rows are one (a bias). An output may be an input, but may not overlap one otherwise.
struct Operands {
  Type type;
  Mode mode;
  int64_t rows, width;
  const void* inputs[3];
  int64_t input_strides[3];
  void* outputs[2];
  int64_t output_strides[2];
};

// How much of the derivative is kept: derivative_code.h says what it means.
enum class Code { kEight, kOne };

// GELU with its derivative kept in a code of 8 bits an element, or 1 bit, lowest bit first; and the
// gradient from that. All tensors are one row of `count` elements. `value` is gelu's result, which
// decoding 1 bit needs.
struct Coded {
  Type type;
  Mode mode;
  Code code;
  int64_t count;
  const void* input;  // x, or the gradient of gelu's result
  void* output;       // gelu's result, or the gradient of x
  const void* value;  // when decoding 1 bit: gelu's result
  uint8_t* codes;     // written by encoding, read by decoding
};

}  // namespace custom_gelu
