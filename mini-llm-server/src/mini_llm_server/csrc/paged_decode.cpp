// Attention of decoding sequences over the paged KV cache, on a CPU, reading keys and values where
// they lie: nothing of the cache is copied.
//
// A work item is one sequence with one KV head; the query heads that share this KV head read its
// keys together. Scores are never stored beyond one run of kRun keys: maximum, sum and output are
// rescaled as the maximum grows (online softmax, Milakov and Gimelshein 2018; in blocks as in
// FlashAttention, Dao et al. 2022).
//
// A query's arithmetic depends on its own sequence alone, in one fixed order: its result has the
// same bits alone and in any batch, on any number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace mini_llm_server {
namespace {

constexpr int64_t kGrain = 32768;  // numbers of keys that are worth a thread
constexpr int64_t kRun = kLanes;   // keys between two rescalings

// Storage T, arithmetic A. kParts is how many times 16 numbers a head has, where that is fixed
// (then a query and its output stay in registers); 0 is any head size.
template <typename T, typename A, int64_t kParts>
struct Problem {
  const T* q;             // [B, H, D] with the strides below
  const T* k;             // [slots, K, D]
  const T* v;             // like k
  T* out;                 // [B, H, D]
  const int64_t* table;   // [B, blocks] block numbers
  const int64_t* length;  // [B] tokens that each sequence attends to
  int64_t q_row, q_head, table_row, block_size, H, K, D;
  A scale;

  int64_t parts() const { return kParts > 0 ? kParts : (D + kLanes - 1) / kLanes; }

  // Part p of a head's numbers.
  Lanes<A> part(const T* head, int64_t p) const {
    if (kParts > 0 || (p + 1) * kLanes <= D) return load(head + p * kLanes);
    return load_some(head + p * kLanes, D - p * kLanes);
  }

  void run(int64_t sequence, int64_t head) const {
    const int64_t G = H / K;
    const int64_t P = parts();
    thread_local std::vector<A> scratch;
    scratch.resize(static_cast<size_t>(G * (2 * P * kLanes + 2)));
    A* const query = scratch.data();        // [G, P * 16]
    A* const acc = query + G * P * kLanes;  // [G, P * 16]
    A* const top = acc + G * P * kLanes;    // [G]
    A* const total = top + G;               // [G]
    for (int64_t g = 0; g < G; ++g) {
      const T* source = q + sequence * q_row + (head * G + g) * q_head;
      for (int64_t p = 0; p < P; ++p) {
        store(query + (g * P + p) * kLanes, part(source, p) * scale);
        store(acc + (g * P + p) * kLanes, Lanes<A>{});
      }
      top[g] = -std::numeric_limits<A>::infinity();
      total[g] = 0;
    }
    const int64_t* const blocks = table + sequence * table_row;
    const T* keys[2][kRun];  // of this run and, while they are fetched, of the next
    const T* values[2][kRun];
    const int64_t L = length[sequence];
    locate(blocks, head, 0, L, keys[0], values[0]);
    for (int64_t j = 0; j < L; j += kRun) {
      const int64_t now = j / kRun % 2;
      locate(blocks, head, j + kRun, L, keys[1 - now], values[1 - now]);
      for (int64_t g = 0; g < G; ++g) {
        visit(query + g * P * kLanes, acc + g * P * kLanes, top[g], total[g], keys[now],
              values[now], std::min(kRun, L - j));
      }
    }
    for (int64_t g = 0; g < G; ++g) {
      T* const target = out + (sequence * H + head * G + g) * D;
      const A whole = L > 0 ? total[g] : A(1);
      for (int64_t d = 0; d < D; ++d) target[d] = static_cast<T>(acc[g * P * kLanes + d] / whole);
    }
  }

  // Find a run's keys and values and ask for them: a head's rows lie too far apart for the CPU to
  // guess the next one.
  void locate(const int64_t* blocks, int64_t head, int64_t j, int64_t L, const T** keys,
              const T** values) const {
    int64_t block = j / block_size, offset = j % block_size;  // one division for all
    for (int64_t i = 0; i < std::min(kRun, L - j); ++i) {
      const int64_t slot = blocks[block] * block_size + offset;
      if (++offset == block_size) offset = 0, ++block;
      keys[i] = k + (slot * K + head) * D;
      values[i] = v + (slot * K + head) * D;
      for (int64_t d = 0; d < D; d += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(keys[i] + d);
        __builtin_prefetch(values[i] + d);
      }
    }
  }

  // Let one query see a run of keys and values.
  void visit(const A* query, A* acc, A& top, A& total, const T* const* keys, const T* const* values,
             int64_t count) const {
    Lanes<A> products[kRun];  // lane l of row i: part of the product with key i
    for (int64_t i = 0; i < count; ++i) {
      Lanes<A> product = load(query) * part(keys[i], 0);
      for (int64_t p = 1; p < parts(); ++p) product += load(query + p * kLanes) * part(keys[i], p);
      products[i] = product;
    }
    for (int64_t i = count; i < kRun; ++i) products[i] = Lanes<A>{};
    Lanes<A> score = row_sums<A>(products);
    for (int64_t i = count; i < kRun; ++i) score[i] = -std::numeric_limits<A>::infinity();
    const A highest = std::max(top, largest<A>(score));
    const Lanes<A> weight = exp_nonpositive(score - highest);
    const A shrink = exp_nonpositive(all(top - highest))[0];
    total = total * shrink + sum<A>(weight);
    top = highest;
    if constexpr (kParts > 0) {
      Lanes<A> own[kParts];
      for (int64_t p = 0; p < kParts; ++p) own[p] = load(acc + p * kLanes) * shrink;
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t p = 0; p < kParts; ++p) own[p] += part(values[i], p) * weight[i];
      }
      for (int64_t p = 0; p < kParts; ++p) store(acc + p * kLanes, own[p]);
    } else {
      for (int64_t p = 0; p < parts(); ++p) {
        Lanes<A> own = load(acc + p * kLanes) * shrink;
        for (int64_t i = 0; i < count; ++i) own += part(values[i], p) * weight[i];
        store(acc + p * kLanes, own);
      }
    }
  }

  static void store(A* target, Lanes<A> lanes) { std::memcpy(target, &lanes, sizeof lanes); }
};

template <typename T, int64_t kParts>
void attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& table,
            const at::Tensor& length, int64_t block_size, double scale, at::Tensor& out) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t K = k.size(1);
  const Problem<T, A, kParts> problem{q.const_data_ptr<T>(),
                                      k.const_data_ptr<T>(),
                                      v.const_data_ptr<T>(),
                                      out.mutable_data_ptr<T>(),
                                      table.const_data_ptr<int64_t>(),
                                      length.const_data_ptr<int64_t>(),
                                      q.stride(0),
                                      q.stride(1),
                                      table.stride(0),
                                      block_size,
                                      q.size(1),
                                      K,
                                      q.size(2),
                                      static_cast<A>(scale)};
  // Items of a mean length: enough of them that a thread is worth waking.
  const int64_t B = q.size(0);
  const int64_t tokens = std::accumulate(problem.length, problem.length + B, int64_t{0});
  const int64_t grain = std::max<int64_t>(1, kGrain * B / std::max<int64_t>(1, tokens * problem.D));
  at::parallel_for(0, B * K, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) problem.run(i / K, i % K);
  });
}

template <typename T, typename... Rest>
void attend_by_head(const at::Tensor& q, Rest&&... rest) {
  switch (q.size(2)) {
    case 64:
      return attend<T, 4>(q, rest...);
    case 128:
      return attend<T, 8>(q, rest...);
    default:
      return attend<T, 0>(q, rest...);
  }
}

// q [B, H, D], one token of each sequence; k and v [slots, K, D], one layer's cache with these
// tokens' own keys already in it; table [B, blocks]; length [B]. Returns [B, H * D], zeros for a
// length of 0. Not used here: arrivals, which blocks of a GPU need to wait for each other.
at::Tensor paged_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& table, const at::Tensor& length, int64_t block_size,
                        double scale, const std::optional<at::Tensor>& /*arrivals*/) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.sizes() == k.sizes(), "q, k and v need 3 dims");
  TORCH_CHECK(q.size(2) == k.size(2), "head size is " + std::to_string(q.size(2)) + " of q and " +
                                          std::to_string(k.size(2)) + " of k");
  TORCH_CHECK(q.size(1) % k.size(1) == 0, std::to_string(q.size(1)) + " query heads on " +
                                              std::to_string(k.size(1)) + " KV heads");
  TORCH_CHECK(q.stride(2) == 1 && k.is_contiguous() && v.is_contiguous(), "memory is not dense");
  TORCH_CHECK(q.scalar_type() == k.scalar_type() && k.scalar_type() == v.scalar_type(),
              "q, k and v have different types");
  for (const at::Tensor& each : {table, length}) {
    TORCH_CHECK(each.scalar_type() == at::kLong && each.is_contiguous(), "indices are int64");
    TORCH_CHECK(each.size(0) == q.size(0), std::to_string(each.size(0)) + " sequences with " +
                                               std::to_string(q.size(0)) + " queries");
  }
  at::Tensor out = q.new_empty({q.size(0), q.size(1) * q.size(2)});
  switch (q.scalar_type()) {
    case at::kFloat:
      attend_by_head<float>(q, k, v, table, length, block_size, scale, out);
      break;
    case at::kDouble:
      attend_by_head<double>(q, k, v, table, length, block_size, scale, out);
      break;
    case at::kBFloat16:
      attend_by_head<at::BFloat16>(q, k, v, table, length, block_size, scale, out);
      break;
    default:
      TORCH_CHECK(false, "type ", q.scalar_type(), " is not supported");
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mini_llm_server, m) {
  m.def(
      "paged_decode(Tensor q, Tensor k, Tensor v, Tensor table, Tensor length, int block_size, "
      "float scale, Tensor(a!)? arrivals=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(mini_llm_server, CPU, m) {
  m.impl("paged_decode", paged_decode);
}

}  // namespace mini_llm_server

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Registers the operators of torch.ops.mini_llm_server; has no functions itself.";
}
