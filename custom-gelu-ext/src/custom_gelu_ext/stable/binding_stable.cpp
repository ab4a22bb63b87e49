// The operators bound through torch's stable ABI: one library for torch 2.10 and every later one.
//
// csrc/torch uses torch's C++ classes, whose layout changes from release to release; this
// file only what torch promises to keep (torch/csrc/stable, torch/headeronly). It has no autograd
// in C++ (autograd_python.py serves this build) and copies what is not contiguous.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <string>
#include <tuple>

#include "../csrc/cpu/kernels.h"
#include "../csrc/schemas.h"
#ifdef WITH_CUDA
#include "../csrc/cuda/launchers.h"
#endif

namespace custom_gelu {
namespace cpu {

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& function) {
  torch::stable::parallel_for(0, n, grain, function);
}

}  // namespace cpu

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Pair = std::tuple<Tensor, Tensor>;

Mode mode_of(const std::string& approximate) {
  STD_TORCH_CHECK(approximate == "none" || approximate == "tanh",
                  "gelu: approximate must be 'none' or 'tanh', got '", approximate, "'");
  return approximate == "tanh" ? Mode::kTanh : Mode::kExact;
}

Type type_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat32;
    case ScalarType::Double:
      return Type::kFloat64;
    case ScalarType::Half:
      return Type::kFloat16;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "gelu: dtype must be float32, float64, float16 or bfloat16");
  }
}

void check_alike(const Tensor& one, const Tensor& other) {
  bool same = one.dim() == other.dim() && one.scalar_type() == other.scalar_type() &&
              one.device() == other.device();
  for (int64_t d = 0; same && d < one.dim(); ++d) same = one.size(d) == other.size(d);
  STD_TORCH_CHECK(same, "gelu: the tensors' shapes, dtypes and devices must be equal");
}

void check_bias(const Tensor& x, const Tensor& bias) {
  STD_TORCH_CHECK(x.dim() >= 1 && bias.dim() == 1 && bias.size(0) == x.size(-1) &&
                      bias.scalar_type() == x.scalar_type() && bias.device() == x.device(),
                  "bias_gelu: bias must be [C] where x's last dimension is C, of x's dtype and "
                  "device");
}

// Like x, which may be transposed or channels-last; others are copied into that layout.
Tensor in_layout_of(const Tensor& tensor, const Tensor& out) {
  bool same = true;
  for (int64_t d = 0; d < out.dim(); ++d) {
    same = same && (out.size(d) == 1 || tensor.stride(d) == out.stride(d));
  }
  if (same) return tensor;
  Tensor copy = torch::stable::empty_like(out);
  return torch::stable::copy_(copy, tensor);
}

Operands operands(Mode mode, std::initializer_list<Tensor> inputs,
                  std::initializer_list<Tensor> outputs) {
  const Tensor& first = *inputs.begin();
  Operands result{type_of(first), mode, 1, first.numel(), {}, {}, {}, {}};
  int k = 0;
  for (const Tensor& each : inputs) result.inputs[k++] = each.const_data_ptr();
  k = 0;
  for (const Tensor& each : outputs) result.outputs[k++] = each.mutable_data_ptr();
  return result;
}

// The last input is a bias: one row for all rows of the others.
Operands with_bias(Operands result, int inputs, int outputs, int64_t width) {
  result.rows = width > 0 ? result.width / width : 0;
  result.width = width;
  for (int k = 0; k + 1 < inputs; ++k) result.input_strides[k] = width;
  for (int k = 0; k < outputs; ++k) result.output_strides[k] = width;
  return result;
}

#ifdef WITH_CUDA
cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
void check_launch(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess,
                  "custom_gelu_ext: a kernel could not be launched: ", cudaGetErrorString(error));
}
#endif

void run(Op op, const Operands& o, const Tensor& x) {
#ifdef WITH_CUDA
  if (x.is_cuda()) {
    static constexpr decltype(&cuda::gelu) kLaunchers[] = {
        cuda::gelu,      cuda::gelu_backward, cuda::gelu_double_backward,
        cuda::bias_gelu, cuda::geglu,         cuda::geglu_backward};
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    return check_launch(kLaunchers[int(op)](o, stream_of(x)));
  }
#endif
  cpu::elementwise(op, o);
}

Tensor gelu(const Tensor& x, std::string approximate) {
  const Mode mode = mode_of(approximate);
  Tensor out = torch::stable::empty_like(x);
  run(Op::kGelu, operands(mode, {in_layout_of(x, out)}, {out}), x);
  return out;
}

void gelu_(Tensor x, std::string approximate) {
  Tensor out = gelu(x, approximate);
  torch::stable::copy_(x, out);
}

Tensor gelu_backward(const Tensor& grad, const Tensor& x, std::string approximate) {
  check_alike(grad, x);
  Tensor out = torch::stable::empty_like(x);
  const auto inputs = {in_layout_of(grad, out), in_layout_of(x, out)};
  run(Op::kGeluBackward, operands(mode_of(approximate), inputs, {out}), x);
  return out;
}

Pair gelu_double_backward(const Tensor& grad_grad, const Tensor& grad, const Tensor& x,
                          std::string approximate) {
  check_alike(grad_grad, x);
  check_alike(grad, x);
  Tensor to_grad = torch::stable::empty_like(x), to_x = torch::stable::empty_like(x);
  const auto inputs = {in_layout_of(grad_grad, to_x), in_layout_of(grad, to_x),
                       in_layout_of(x, to_x)};
  run(Op::kGeluDoubleBackward, operands(mode_of(approximate), inputs, {to_grad, to_x}), x);
  return {to_grad, to_x};
}

Tensor bias_gelu(const Tensor& x, const Tensor& bias, std::string approximate) {
  check_bias(x, bias);
  const Tensor source = torch::stable::contiguous(x), row = torch::stable::contiguous(bias);
  Tensor out = torch::stable::empty_like(source);
  const Operands o = operands(mode_of(approximate), {source, row}, {out});
  run(Op::kBiasGelu, with_bias(o, 2, 1, bias.numel()), x);
  return out;
}

Pair bias_gelu_backward(const Tensor& grad, const Tensor& x, const Tensor& bias,
                        std::string approximate) {
  check_bias(x, bias);
  check_alike(grad, x);
  const Tensor upstream = torch::stable::contiguous(grad), source = torch::stable::contiguous(x);
  const Tensor row = torch::stable::contiguous(bias);
  Tensor grad_x = torch::stable::empty_like(source), grad_bias = torch::stable::empty_like(row);
  Operands o =
      with_bias(operands(mode_of(approximate), {upstream, source, row}, {grad_x, grad_bias}), 3, 2,
                bias.numel());
  o.output_strides[1] = 0;
#ifdef WITH_CUDA
  if (x.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    const auto dtype = o.type == Type::kFloat64 ? ScalarType::Double : ScalarType::Float;
    const Tensor partial = torch::stable::new_empty(x, {cuda::partial_rows(o), o.width}, dtype);
    check_launch(cuda::bias_gelu_backward(o, partial.mutable_data_ptr(), stream_of(x)));
    return {grad_x, grad_bias};
  }
#endif
  cpu::bias_gelu_backward(o);
  return {grad_x, grad_bias};
}

Tensor geglu(const Tensor& gate, const Tensor& value, std::string approximate) {
  check_alike(value, gate);
  Tensor out = torch::stable::empty_like(gate);
  const auto inputs = {in_layout_of(gate, out), in_layout_of(value, out)};
  run(Op::kGeglu, operands(mode_of(approximate), inputs, {out}), gate);
  return out;
}

Pair geglu_backward(const Tensor& grad, const Tensor& gate, const Tensor& value,
                    std::string approximate) {
  check_alike(value, gate);
  check_alike(grad, gate);
  Tensor to_gate = torch::stable::empty_like(gate), to_value = torch::stable::empty_like(gate);
  const auto inputs = {in_layout_of(grad, to_gate), in_layout_of(gate, to_gate),
                       in_layout_of(value, to_gate)};
  run(Op::kGegluBackward, operands(mode_of(approximate), inputs, {to_gate, to_value}), gate);
  return {to_gate, to_value};
}

Tensor coded(bool encoding, Code code, const Tensor& input, const Tensor* value, Tensor codes,
             Mode mode) {
  Tensor out = torch::stable::empty_like(input);
  const Coded c{type_of(input),
                mode,
                code,
                input.numel(),
                input.const_data_ptr(),
                out.mutable_data_ptr(),
                value ? value->const_data_ptr() : nullptr,
                static_cast<uint8_t*>(codes.mutable_data_ptr())};
#ifdef WITH_CUDA
  if (input.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
    check_launch((encoding ? cuda::encode : cuda::decode)(c, stream_of(input)));
    return out;
  }
#endif
  (encoding ? cpu::encode : cpu::decode)(c);
  return out;
}

int64_t code_size(Code code, int64_t count) {
  return code == Code::kEight ? count : (count + 7) / 8;
}

Pair encode(Code code, const Tensor& x, const std::string& approximate) {
  type_of(x);
  Tensor codes = torch::stable::new_empty(x, {code_size(code, x.numel())}, ScalarType::Byte);
  const Tensor source = torch::stable::contiguous(x);
  return {coded(true, code, source, nullptr, codes, mode_of(approximate)), codes};
}

Tensor decode(Code code, const Tensor& grad, const Tensor* value, const Tensor& codes, Mode mode) {
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Byte && codes.is_contiguous() &&
                      codes.numel() == code_size(code, grad.numel()) &&
                      codes.device() == grad.device(),
                  "gelu: the code does not fit the gradient");
  return coded(false, code, torch::stable::contiguous(grad), value, codes, mode);
}

Pair gelu_8bit(const Tensor& x, std::string approximate) {
  return encode(Code::kEight, x, approximate);
}
Pair gelu_1bit(const Tensor& x, std::string approximate) {
  return encode(Code::kOne, x, approximate);
}
Tensor gelu_8bit_backward(const Tensor& grad, const Tensor& code) {
  return decode(Code::kEight, grad, nullptr, code, Mode::kExact);
}
Tensor gelu_1bit_backward(const Tensor& grad, const Tensor& value, const Tensor& code,
                          std::string approximate) {
  check_alike(grad, value);
  const Tensor packed = torch::stable::contiguous(value);
  return decode(Code::kOne, grad, &packed, code, mode_of(approximate));
}

template <typename Library>
void implement(Library& m) {
  m.impl("gelu", TORCH_BOX(&gelu));
  m.impl("gelu_", TORCH_BOX(&gelu_));
  m.impl("gelu_backward", TORCH_BOX(&gelu_backward));
  m.impl("gelu_double_backward", TORCH_BOX(&gelu_double_backward));
  m.impl("bias_gelu", TORCH_BOX(&bias_gelu));
  m.impl("bias_gelu_backward", TORCH_BOX(&bias_gelu_backward));
  m.impl("geglu", TORCH_BOX(&geglu));
  m.impl("geglu_backward", TORCH_BOX(&geglu_backward));
  m.impl("gelu_8bit", TORCH_BOX(&gelu_8bit));
  m.impl("gelu_8bit_backward", TORCH_BOX(&gelu_8bit_backward));
  m.impl("gelu_1bit", TORCH_BOX(&gelu_1bit));
  m.impl("gelu_1bit_backward", TORCH_BOX(&gelu_1bit_backward));
}

}  // namespace

STABLE_TORCH_LIBRARY(custom_gelu_ext, m) {
  for (const char* schema : kSchemas) m.def(schema);
}

STABLE_TORCH_LIBRARY_IMPL(custom_gelu_ext, CPU, m) {
  implement(m);
}

#ifdef WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(custom_gelu_ext, CUDA, m) {
  implement(m);
}
#endif

}  // namespace custom_gelu
