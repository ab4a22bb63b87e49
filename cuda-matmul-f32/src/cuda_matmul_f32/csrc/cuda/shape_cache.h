// Remembers what was worked out for the shapes seen last, since a program multiplies the same few
// shapes again and again, and planning would cost as long as launching does.
#pragma once

#include <array>
#include <cstdint>

#include "problem.h"

// One place for each of 64 hashes of a shape; a new shape takes the place of the old one. Not for
// use by several threads: make it thread_local. Values may depend on the batch, M, N, K, which
// side's batch stride is 0, and the number that is asked with, such as the GPU's.
template <typename Value>
class ShapeCache {
 public:
  template <typename Compute>
  const Value& get(const Problem& p, int64_t number, const Compute& compute) {
    const Key key{p.batch, p.M,    p.N,
                  p.K,     number, (p.a.batch_stride != 0) + 2 * (p.b.batch_stride != 0)};
    uint64_t hash = 0;
    for (const int64_t part : key) hash = (hash ^ static_cast<uint64_t>(part)) * 0x9e3779b97f4a7c15;
    Entry& entry = entries_[hash >> 58];
    if (!entry.used || entry.key != key) entry = {true, key, compute()};
    return entry.value;
  }

 private:
  using Key = std::array<int64_t, 6>;
  struct Entry {
    bool used = false;
    Key key{};
    Value value{};
  };
  std::array<Entry, 64> entries_;
};
