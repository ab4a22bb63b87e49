// GELU's CUDA kernels: gelu_math.h run by the streaming kernel of elementwise.cuh.
#include "../gelu_math.h"
#include "elementwise.cuh"
#include "gelu.h"

namespace custom_gelu::cuda {
namespace {

template <typename Precision, Mode kMode>
struct Forward {
  using Real = typename Precision::Real;
  static __device__ __forceinline__ Real run(Real x) { return gelu_value<Precision, kMode>(x); }
};

template <typename Precision, Mode kMode>
struct Backward {
  using Real = typename Precision::Real;
  static __device__ __forceinline__ Real run(Real grad, Real x) {
    return grad * gelu_derivative<Precision, kMode>(x);
  }
};

template <typename Precision, Mode kMode, typename Element>
cudaError_t forward_as(const void* x, void* out, int64_t n, cudaStream_t stream) {
  const Inputs<Element, 1> inputs{{static_cast<const Element*>(x)}};
  return launch_elementwise<Forward<Precision, kMode>>(inputs, static_cast<Element*>(out), n,
                                                       stream);
}

template <typename Precision, Mode kMode, typename Element>
cudaError_t backward_as(const void* grad, const void* x, void* out, int64_t n,
                        cudaStream_t stream) {
  const Inputs<Element, 2> inputs{
      {static_cast<const Element*>(grad), static_cast<const Element*>(x)}};
  return launch_elementwise<Backward<Precision, kMode>>(inputs, static_cast<Element*>(out), n,
                                                        stream);
}

template <Mode kMode>
cudaError_t forward(Type type, const void* x, void* out, int64_t n, cudaStream_t stream) {
  switch (type) {
    case Type::kFloat32:
      return forward_as<Single, kMode, float>(x, out, n, stream);
    case Type::kFloat64:
      return forward_as<Double, kMode, double>(x, out, n, stream);
    case Type::kFloat16:
      return forward_as<Lean, kMode, __half>(x, out, n, stream);
    case Type::kBFloat16:
      return forward_as<Lean, kMode, __nv_bfloat16>(x, out, n, stream);
  }
  return cudaErrorInvalidValue;
}

template <Mode kMode>
cudaError_t backward(Type type, const void* grad, const void* x, void* out, int64_t n,
                     cudaStream_t stream) {
  switch (type) {
    case Type::kFloat32:
      return backward_as<Single, kMode, float>(grad, x, out, n, stream);
    case Type::kFloat64:
      return backward_as<Double, kMode, double>(grad, x, out, n, stream);
    case Type::kFloat16:
      return backward_as<Lean, kMode, __half>(grad, x, out, n, stream);
    case Type::kBFloat16:
      return backward_as<Lean, kMode, __nv_bfloat16>(grad, x, out, n, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t gelu(Type type, Mode mode, const void* x, void* out, int64_t n, cudaStream_t stream) {
  return mode == Mode::kExact ? forward<Mode::kExact>(type, x, out, n, stream)
                              : forward<Mode::kTanh>(type, x, out, n, stream);
}

cudaError_t gelu_backward(Type type, Mode mode, const void* grad, const void* x, void* out,
                          int64_t n, cudaStream_t stream) {
  return mode == Mode::kExact ? backward<Mode::kExact>(type, grad, x, out, n, stream)
                              : backward<Mode::kTanh>(type, grad, x, out, n, stream);
}

}  // namespace custom_gelu::cuda
