// harness check        runs the right kernels against plain loops; 0 when all agree
// harness bug NAME     launches the kernel with that planted bug and prints out [64]; status 3: the runtime reported it
//                      (and right kernels still ran after that)
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "harness_kernels.h"
#include "runtime.h"

namespace frcnn_fast {
namespace {

int failures = 0;

void expect(bool right, const char* what) {
  if (!right) {
    ++failures;
    std::printf("WRONG: %s\n", what);
  }
}

std::mt19937 generator(7);

void check_select(int n, int k) {
  std::vector<unsigned> keys(n);
  for (unsigned& key : keys) key = generator() % (n < 500 ? 20 : 1u << 31);  // small n: many ties
  std::vector<int> chosen(k, -1), expected(n);
  expect(select_largest(keys.data(), n, k, chosen.data()) == 0, "select: status");
  std::iota(expected.begin(), expected.end(), 0);
  std::stable_sort(expected.begin(), expected.end(), [&](int a, int b) { return keys[a] > keys[b]; });
  expected.resize(k);
  std::sort(expected.begin(), expected.end());
  expect(chosen == expected, "select: indices");
}

void check_overlaps(int n) {
  std::vector<float> intervals(2 * n);
  for (int i = 0; i < n; ++i) {
    intervals[2 * i] = float(generator() % 1000);
    intervals[2 * i + 1] = intervals[2 * i] + float(generator() % 100);
  }
  const int row_words = (n + 31) / 32;
  std::vector<unsigned> words(size_t(n) * row_words, 0xCDCDCDCDu), expected(words.size(), 0u);
  expect(overlaps(intervals.data(), n, words.data()) == 0, "overlaps: status");
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j)
      if (intervals[2 * j] < intervals[2 * i + 1] && intervals[2 * i] < intervals[2 * j + 1])
        expected[size_t(i) * row_words + j / 32] |= 1u << (j % 32);
  expect(words == expected, "overlaps: words");
}

void check_sort(int pieces, int each) {
  std::vector<unsigned> items(size_t(pieces) * each);
  for (unsigned& item : items) item = generator() % 1000;
  std::vector<unsigned> expected = items;
  expect(sort_pieces(items.data(), pieces, each) == 0, "sort: status");
  for (int p = 0; p < pieces; ++p)
    std::sort(expected.begin() + ptrdiff_t(p) * each, expected.begin() + ptrdiff_t(p + 1) * each);
  expect(items == expected, "sort: order");
}

void check_sums(int blocks, unsigned cluster) {
  std::vector<int> values(size_t(blocks) * 64), sums(blocks, -1), partial(blocks);
  for (int& value : values) value = int(generator() % 100);
  expect(cluster_sums(values.data(), blocks, cluster, sums.data()) == 0, "cluster: status");
  for (int b = 0; b < blocks; ++b) {
    const auto begin = values.begin() + ptrdiff_t(b / int(cluster) * int(cluster)) * 64;
    expect(sums[b] == std::accumulate(begin, begin + ptrdiff_t(cluster) * 64, 0), "cluster: sum");
  }
  int tickets = -1, sum = -1;
  expect(last_block_sum(values.data(), blocks, partial.data(), &tickets, &sum) == 0, "last block: status");
  expect(sum == std::accumulate(values.begin(), values.end(), 0), "last block: sum");
}

void check_overlapped() {
  int count = -1;
  expect(overlapped_count(3, &count) == 0 && count == 3, "overlapped launches");
}

void check_clusters_are_refused() {
  int unused[8] = {};
  simt::set_device(1);
  expect(cluster_sums(unused, 8, 4, unused) == 9, "a cluster below capability 9.0 is refused");
  simt::set_device(0);
}

void check_collectives() {
  std::vector<int> out(64 * 16);
  expect(warp_collectives(out.data()) == 0, "collectives: status");
  unsigned thirds = 0;
  for (int lane = 0; lane < 32; lane += 3) thirds |= 1u << lane;
  for (int t = 0; t < 64; ++t) {
    const int* row = &out[16 * t];
    const int lane = t % 32;
    expect(row[0] == 31 * 32 / 2, "warp_reduce");
    expect(row[1] == lane * (lane + 1) / 2, "warp_inclusive_scan");
    expect(row[2] == 8, "shfl");
    expect(row[3] == (lane % 8 < 4 ? lane + 4 : lane), "shfl_down of width 8");
    expect(unsigned(row[4]) == thirds, "ballot");
    expect(unsigned(row[5]) == 0xffu << (lane / 8 * 8), "match_any");
    expect(row[6] == 31, "reduce_max");
    expect(row[7] == 1 + 2, "any, all");
    expect(row[8] == 6, "syncthreads_count");
    expect(row[9] == 2, "syncthreads_or, and");
    expect(lane < 16 ? row[10] == (lane ^ 1) : unsigned(row[10]) == 0xaaaa0000u, "half warps");
    expect(row[11] == 0x400, "shfl of double");
  }
}

int check() {
  for (int order = 0; order < 3; ++order) {
    simt::set_order(order, 5);
    for (int n : {1, 255, 256, 257, 5000}) check_select(n, std::min(n, 100));
    for (int n : {1, 31, 33, 200}) check_overlaps(n);
    check_sort(3, 256);
    check_sort(1, 16384);  // more than 48 KB
    check_sums(8, 1);
    check_sums(8, 4);
    check_sums(16, 8);
    check_overlapped();
    check_collectives();
  }
  check_clusters_are_refused();
  int unused = 0;
  expect(empty_grid(&unused) == 9, "a launch of no blocks is refused");
  expect(too_much_dynamic(&unused) == 1, "more dynamic shared memory than allowed is refused");
  expect(empty_grid(&unused) == 9, "asking clears the status");
  std::printf("%lld launches, %d wrong\n", static_cast<long long>(simt::launches()), failures);
  return failures != 0;
}

int plant(const char* name) {
  for (int b = 0; b < kNumBugs; ++b) {
    if (std::strcmp(kBugs[b].name, name)) continue;
    std::vector<int> out(64, -1);
    try {
      kBugs[b].launch(out.data());
    } catch (const simt::Error& error) {
      std::fprintf(stderr, "%s\n", error.what());
      check_collectives();  // a failed launch leaves nothing behind
      check_sums(8, 4);
      return failures ? 1 : 3;
    }
    for (int value : out) std::printf("%d ", value);
    return 0;
  }
  std::fprintf(stderr, "no bug is called %s\n", name);
  return 2;
}

}  // namespace
}  // namespace frcnn_fast

int main(int argc, char** argv) {
  if (argc == 3 && !std::strcmp(argv[1], "bug")) return frcnn_fast::plant(argv[2]);
  return frcnn_fast::check();
}
