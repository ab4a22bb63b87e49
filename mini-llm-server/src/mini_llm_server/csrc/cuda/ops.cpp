// The operators on CUDA tensors: checks, device, stream and error handling around the launchers.
//
// Numbers in messages are made strings first: printed by c10 they crashed with GCC 13.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cstdint>
#include <limits>
#include <string>

#include "launchers.h"

namespace mini_llm_server {
namespace {

cuda::Type type_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return cuda::Type::kFloat32;
    case at::kDouble:
      return cuda::Type::kFloat64;
    case at::kHalf:
      return cuda::Type::kFloat16;
    case at::kBFloat16:
      return cuda::Type::kBFloat16;
    default:
      TORCH_CHECK(false, "type ", x.scalar_type(), " is not supported");
  }
}

// The others are on x's device, dense, and of its type.
void check_alike(const at::Tensor& x, std::initializer_list<const at::Tensor*> others) {
  for (const at::Tensor* other : others) {
    TORCH_CHECK(other->device() == x.device(),
                "tensors on " + x.device().str() + " and " + other->device().str());
    TORCH_CHECK(other->scalar_type() == x.scalar_type(), "tensors of different types");
    TORCH_CHECK(other->is_contiguous(), "memory is not dense");
  }
}

// [count] or [count, any] indices, dense, on x's device.
void check_indices(const at::Tensor& x, const at::Tensor& indices, int64_t count) {
  TORCH_CHECK(indices.scalar_type() == at::kLong && indices.is_contiguous(), "indices are int64");
  TORCH_CHECK(indices.device() == x.device(), "indices are not on " + x.device().str());
  TORCH_CHECK(indices.size(0) == count, std::to_string(indices.size(0)) + " indices for " +
                                            std::to_string(count) + " tokens");
}

// Run a launcher on x's device, on the caller's stream.
template <typename F>
void launch(const at::Tensor& x, F launcher) {
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaError_t error = launcher(c10::cuda::getCurrentCUDAStream(x.get_device()).stream());
  TORCH_CHECK(error == cudaSuccess,
              "mini_llm_server: a kernel could not be launched: ", cudaGetErrorString(error));
}

at::Tensor add_rms_norm(at::Tensor x, const std::optional<at::Tensor>& delta,
                        const at::Tensor& weight, double eps) {
  TORCH_CHECK(x.dim() == 2 && weight.numel() == x.size(1), "x is [N, E], weight is [E]");
  check_alike(x, {&x, &weight});
  if (delta) {
    TORCH_CHECK(delta->sizes() == x.sizes(), "delta is not like x");
    check_alike(x, {&*delta});
  }
  at::Tensor out = x.new_empty(x.sizes());
  launch(x, [&](cudaStream_t stream) {
    return cuda::add_rms_norm(type_of(x), x.mutable_data_ptr(),
                              delta ? delta->const_data_ptr() : nullptr, weight.const_data_ptr(),
                              out.mutable_data_ptr(), x.size(0), x.size(1), eps, stream);
  });
  return out;
}

at::Tensor silu_mul(const at::Tensor& gate_up) {
  TORCH_CHECK(gate_up.dim() == 2 && gate_up.is_contiguous(), "gate_up is [N, 2 F], dense");
  at::Tensor out = gate_up.new_empty({gate_up.size(0), gate_up.size(1) / 2});
  launch(gate_up, [&](cudaStream_t stream) {
    return cuda::silu_mul(type_of(gate_up), gate_up.const_data_ptr(), out.mutable_data_ptr(),
                          out.size(0), out.size(1), stream);
  });
  return out;
}

void rotate(at::Tensor x, const at::Tensor& cos, const at::Tensor& sin) {
  TORCH_CHECK(x.dim() == 3, "x is [N, heads, D]");
  const int64_t D = x.size(2);
  TORCH_CHECK(x.stride(1) == D && x.stride(2) == 1, "heads are not dense");
  check_alike(x, {&cos, &sin});
  TORCH_CHECK(cos.numel() == x.size(0) * D && sin.numel() == cos.numel(), "a row for each token");
  launch(x, [&](cudaStream_t stream) {
    return cuda::rotate(type_of(x), x.mutable_data_ptr(), x.stride(0), cos.const_data_ptr(),
                        sin.const_data_ptr(), x.size(0), x.size(1), D, stream);
  });
}

// k and v [N, K, D] to the rows `slots` [N] of the caches [slots, K, D]; negative ones are skipped.
void write_kv(const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots, at::Tensor k_cache,
              at::Tensor v_cache) {
  check_alike(k, {&k_cache, &v_cache});
  check_indices(k, slots, k.size(0));
  for (const at::Tensor* each : {&k, &v}) {
    TORCH_CHECK(each->sizes() == k.sizes() && each->scalar_type() == k.scalar_type() &&
                    each->device() == k.device(),
                "k and v are unlike");
    TORCH_CHECK(each->dim() == 3 && each->stride(2) == 1 && each->stride(1) == each->size(2),
                "a token's heads are not dense");
  }
  TORCH_CHECK(k_cache.dim() == 3 && k_cache.sizes().slice(1) == k.sizes().slice(1) &&
                  v_cache.sizes() == k_cache.sizes(),
              "the caches are [slots, K, D]");
  launch(k, [&](cudaStream_t stream) {
    return cuda::write_kv(
        {type_of(k), k.const_data_ptr(), v.const_data_ptr(), slots.const_data_ptr<int64_t>(),
         k_cache.mutable_data_ptr(), v_cache.mutable_data_ptr(), k.stride(0), v.stride(0),
         k.size(0), k.size(1) * k.size(2)},
        stream);
  });
}

// q [B, H, D], one token of each sequence; k and v [slots, K, D], one layer's cache with these
// tokens' own keys already in it; table [B, blocks]; length [B]. Returns [B, H * D], zeros for a
// length of 0. D is a multiple of 8, at most 256. arrivals: [B, H] int32 zeros, and zeros
// afterwards; without it the operator makes its own, which takes another launch.
at::Tensor paged_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& table, const at::Tensor& length, int64_t block_size,
                        double scale, const std::optional<at::Tensor>& arrivals) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.sizes() == k.sizes(), "q, k and v need 3 dims");
  const int64_t B = q.size(0), H = q.size(1), K = k.size(1), D = q.size(2);
  TORCH_CHECK(D == k.size(2), "head size is " + std::to_string(D) + " of q and " +
                                  std::to_string(k.size(2)) + " of k");
  TORCH_CHECK(D % 8 == 0 && D <= 256,
              "head size is " + std::to_string(D) + ": not a multiple of 8 up to 256");
  TORCH_CHECK(H % K == 0, std::to_string(H) + " query heads on " + std::to_string(K) + " KV heads");
  TORCH_CHECK(q.stride(2) == 1, "a query is not dense");
  check_alike(q, {&k, &v});
  const int64_t row = B > 1 ? q.stride(0) : 0;
  for (const at::Tensor* each : {&q, &k, &v}) {
    TORCH_CHECK(reinterpret_cast<uintptr_t>(each->const_data_ptr()) % 16 == 0,
                "memory is not aligned to 16 bytes");
  }
  TORCH_CHECK((row | q.stride(1)) * q.itemsize() % 16 == 0, "queries are not aligned to 16 bytes");
  check_indices(q, table, B);
  check_indices(q, length, B);
  TORCH_CHECK(table.dim() == 2 && length.dim() == 1, "table is [B, blocks], length is [B]");
  TORCH_CHECK(block_size > 0 && table.size(1) * block_size < std::numeric_limits<int>::max(),
              "contexts of " + std::to_string(table.size(1)) + " blocks of " +
                  std::to_string(block_size) + " tokens");

  const at::Tensor counters = arrivals ? *arrivals : length.new_zeros({B, H}, at::kInt);
  TORCH_CHECK(counters.numel() >= B * H && counters.scalar_type() == at::kInt &&
                  counters.is_contiguous() && counters.device() == q.device(),
              "arrivals is [B, H] int32");
  at::Tensor out = q.new_empty({B, H * D});
  cuda::PagedDecode problem{type_of(q),
                            q.const_data_ptr(),
                            k.const_data_ptr(),
                            v.const_data_ptr(),
                            out.mutable_data_ptr(),
                            table.const_data_ptr<int64_t>(),
                            length.const_data_ptr<int64_t>(),
                            nullptr,
                            static_cast<unsigned*>(counters.mutable_data_ptr()),
                            row,
                            q.stride(1),
                            static_cast<int>(B),
                            static_cast<int>(H),
                            static_cast<int>(K),
                            static_cast<int>(D),
                            static_cast<int>(table.size(1)),
                            static_cast<int>(block_size),
                            scale};
  // From torch's allocator: its next owner on this stream, or in this graph, runs after the kernel.
  const auto kind = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor partial = q.new_empty({B, H, problem.most_splits(), D + 2}, kind);
  problem.partial = partial.mutable_data_ptr();
  launch(q, [&](cudaStream_t stream) { return cuda::paged_decode(problem, stream); });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mini_llm_server, m) {
  m.def("write_kv(Tensor k, Tensor v, Tensor slots, Tensor(a!) k_cache, Tensor(b!) v_cache) -> ()");
}

TORCH_LIBRARY_IMPL(mini_llm_server, CUDA, m) {
  m.impl("add_rms_norm_", add_rms_norm);
  m.impl("silu_mul", silu_mul);
  m.impl("rotate_", rotate);
  m.impl("write_kv", write_kv);
  m.impl("paged_decode", paged_decode);
}

}  // namespace mini_llm_server
