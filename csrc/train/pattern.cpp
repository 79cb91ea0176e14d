#include "pattern.hpp"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "../core/pool.hpp"
#include "../masks/mask_kernels.hpp"

namespace gossamer {
namespace {

constexpr int kWord = 64;

int64_t words_of_halves(int64_t halves) { return (halves + 1) / 2; }

int64_t half_words(int64_t rows, int64_t columns, int64_t nonzeros, int64_t block, int64_t panel) {
  const int64_t blocks = (rows + block - 1) / block, panels = (columns + panel - 1) / panel;
  return blocks + 1 + words_of_halves(rows * panels) + words_of_halves(nonzeros);
}

Half place_half(int32_t* words, int64_t rows, int64_t columns, int64_t block, int64_t panel) {
  Half half{rows, columns, block, panel, words, nullptr, nullptr};
  half.counts = reinterpret_cast<uint16_t*>(words + blocks_of(half) + 1);
  half.index = half.counts + 2 * words_of_halves(rows * panels_of(half));
  return half;
}

Pattern place(int32_t* words, const Geometry& g) {
  int32_t* forward = words + kPatternHeader;
  int32_t* order = forward + half_words(g.outputs, g.inputs, g.nonzeros, g.forward_block, g.forward_panel);
  return {g.outputs,
          g.inputs,
          g.nonzeros,
          place_half(forward, g.outputs, g.inputs, g.forward_block, g.forward_panel),
          place_half(order + g.nonzeros, g.inputs, g.outputs, g.backward_block, g.backward_panel),
          order};
}

bool whole_words(int64_t size) { return size > 0 && size % kWord == 0 && size <= UINT16_MAX; }

bool sound(const Geometry& g) {
  return g.outputs > 0 && g.inputs > 0 && g.nonzeros >= 0 && g.nonzeros <= g.outputs * g.inputs &&
         whole_words(g.forward_block) && whole_words(g.backward_block) && whole_words(g.forward_panel) &&
         whole_words(g.backward_panel) && g.forward_panel <= kMostPanel && g.backward_panel <= kMostPanel;
}

// The mask as bits, each row padded to whole words.
struct Bits {
  int64_t words;  // of a row
  std::vector<uint64_t> storage;
  const uint64_t* row(int64_t r) const { return storage.data() + r * words; }
};

Bits to_bits(const uint8_t* mask, int64_t rows, int64_t columns, int threads) {
  Bits bits{(columns + kWord - 1) / kWord, {}};
  bits.storage.assign(rows * bits.words, 0);
  const auto& kernels = mask_kernels();
  parallel_for(rows, 64, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      kernels.pack(mask + r * columns, reinterpret_cast<uint8_t*>(bits.storage.data() + r * bits.words), columns);
  });
  return bits;
}

#if defined(_MSC_VER)
int count_bits(uint64_t word) { return static_cast<int>(__popcnt64(word)); }
int lowest_bit(uint64_t word) {
  unsigned long place;
  _BitScanForward64(&place, word);
  return static_cast<int>(place);
}
#else
int count_bits(uint64_t word) { return __builtin_popcountll(word); }
int lowest_bit(uint64_t word) { return __builtin_ctzll(word); }
#endif

int64_t count_bits(const uint64_t* words, int64_t begin, int64_t end) {
  int64_t total = 0;
  for (int64_t w = begin; w < end; ++w) total += count_bits(words[w]);
  return total;
}

// Columns of the set bits of words [begin, end), ascending.
template <class F>
void each_bit(const uint64_t* words, int64_t begin, int64_t end, F f) {
  for (int64_t w = begin; w < end; ++w)
    for (uint64_t left = words[w]; left; left &= left - 1) f(w * kWord + lowest_bit(left));
}

// Starts of blocks from what each one holds, which lies in starts[block + 1].
void add_up(const Half& half) {
  half.starts[0] = 0;
  for (int64_t b = 0; b < blocks_of(half); ++b) half.starts[b + 1] += half.starts[b];
}

// First non-zero of every (panel, row) of a block, in the order of `counts`.
void first_places(const Half& half, int64_t block, int32_t* places) {
  const int64_t cells = rows_in(half, block) * panels_of(half);
  const uint16_t* counts = counts_in(half, block);
  int32_t next = half.starts[block];
  for (int64_t c = 0; c < cells; ++c) {
    places[c] = next;
    next += counts[c];
  }
}

// The forward half; places[block][panel][row] gets each row's first non-zero.
void pack_forward(const Half& half, const Bits& bits, int32_t* places, int threads) {
  const int64_t panels = panels_of(half), words = half.panel / kWord;
  parallel_for(blocks_of(half), 1, threads, [&](int64_t block, int64_t) {
    const int64_t rows = rows_in(half, block);
    uint16_t* counts = counts_in(half, block);
    int64_t total = 0;
    for (int64_t p = 0; p < panels; ++p)
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t last = p + 1 < panels ? (p + 1) * words : bits.words;
        const int64_t count = count_bits(bits.row(block * half.block + r), p * words, last);
        counts[p * rows + r] = static_cast<uint16_t>(count);
        total += count;
      }
    half.starts[block + 1] = static_cast<int32_t>(total);
  });
  add_up(half);
  parallel_for(blocks_of(half), 1, threads, [&](int64_t block, int64_t) {
    const int64_t rows = rows_in(half, block);
    int32_t* mine = places + block * half.block * panels;
    first_places(half, block, mine);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t last = p + 1 < panels ? (p + 1) * words : bits.words;
        uint16_t* out = half.index + mine[p * rows + r];
        each_bit(bits.row(block * half.block + r), p * words, last,
                 [&](int64_t column) { *out++ = static_cast<uint16_t>(column - p * half.panel); });
      }
  });
}

// Where a row's next non-zero from word `word` on lies in the forward half.
int32_t forward_place(const Half& half, const int32_t* places, const Bits& bits, int64_t row, int64_t word) {
  const int64_t block = row / half.block, r = row % half.block, panel = word * kWord / half.panel;
  const int64_t first = panel * half.panel / kWord;
  const int32_t begin = places[block * half.block * panels_of(half) + panel * rows_in(half, block) + r];
  return begin + static_cast<int32_t>(count_bits(bits.row(row), first, word));
}

void pack_backward(const Pattern& pattern, const Bits& bits, const int32_t* places, int threads) {
  const Half& half = pattern.backward;
  const int64_t panels = panels_of(half), words = half.block / kWord;
  const auto last_word = [&](int64_t block) { return block * words + (rows_in(half, block) + kWord - 1) / kWord; };
  const auto last_output = [&](int64_t p) { return p + 1 < panels ? (p + 1) * half.panel : half.columns; };
  parallel_for(blocks_of(half), 1, threads, [&](int64_t block, int64_t) {
    const int64_t rows = rows_in(half, block);
    uint16_t* counts = counts_in(half, block);
    std::memset(counts, 0, rows * panels * sizeof(uint16_t));
    int64_t total = 0;
    for (int64_t p = 0; p < panels; ++p) {
      uint16_t* mine = counts + p * rows - block * half.block;
      for (int64_t o = p * half.panel; o < last_output(p); ++o)
        each_bit(bits.row(o), block * words, last_word(block), [&](int64_t input) {
          ++mine[input];
          ++total;
        });
    }
    half.starts[block + 1] = static_cast<int32_t>(total);
  });
  add_up(half);
  std::vector<int32_t> cursors(half.rows * panels);  // one slice per block
  parallel_for(blocks_of(half), 1, threads, [&](int64_t block, int64_t) {
    const int64_t rows = rows_in(half, block), words_of_panel = pattern.forward.panel / kWord;
    int32_t* cursor = cursors.data() + block * half.block * panels;
    first_places(half, block, cursor);
    for (int64_t p = 0; p < panels; ++p) {
      int32_t* mine = cursor + p * rows - block * half.block;
      for (int64_t o = p * half.panel; o < last_output(p); ++o)
        for (int64_t w = block * words, stop; w < last_word(block); w = stop) {
          stop = (w / words_of_panel + 1) * words_of_panel;  // a forward panel at a time
          if (stop > last_word(block)) stop = last_word(block);
          int32_t* order = pattern.order + forward_place(pattern.forward, places, bits, o, w);
          each_bit(bits.row(o), w, stop, [&](int64_t input) {
            const int32_t k = mine[input]++;
            half.index[k] = static_cast<uint16_t>(o - p * half.panel);
            *order++ = k;
          });
        }
    }
  });
}

// f(forward non-zero, place in a dense matrix) for a block of outputs.
template <class F>
void each_nonzero(const Pattern& pattern, int64_t block, F f) {
  const Half& half = pattern.forward;
  const int64_t rows = rows_in(half, block);
  const uint16_t* count = counts_in(half, block);
  int64_t k = half.starts[block];
  for (int64_t p = 0; p < panels_of(half); ++p)
    for (int64_t r = 0; r < rows; ++r, ++count) {
      const int64_t first = (block * half.block + r) * half.columns + p * half.panel;
      for (int64_t end = k + *count; k < end; ++k) f(k, first + half.index[k]);
    }
}

}  // namespace

int64_t pattern_words(const Geometry& g) {
  if (!sound(g)) throw std::invalid_argument("the geometry of a pattern is out of range");
  return kPatternHeader + half_words(g.outputs, g.inputs, g.nonzeros, g.forward_block, g.forward_panel) + g.nonzeros +
         half_words(g.inputs, g.outputs, g.nonzeros, g.backward_block, g.backward_panel);
}

Pattern view_pattern(int32_t* words, int64_t count) {
  if (count < kPatternHeader || words[0] != kPatternMagic || words[1] != kPatternVersion)
    throw std::invalid_argument("not a packed pattern of this version");
  const Geometry g{words[2], words[3], words[4], words[5], words[6], words[7], words[8]};
  if (pattern_words(g) != count) throw std::invalid_argument("the packed pattern is truncated");
  return place(words, g);
}

void pack_pattern(int32_t* words, const Geometry& g, const uint8_t* mask, int threads) {
  std::memset(words, 0, pattern_words(g) * sizeof(int32_t));
  const int64_t header[] = {kPatternMagic,   kPatternVersion, g.outputs,        g.inputs,        g.nonzeros,
                            g.forward_block, g.forward_panel, g.backward_block, g.backward_panel};
  for (int i = 0; i < 9; ++i) words[i] = static_cast<int32_t>(header[i]);
  const Pattern pattern = place(words, g);
  const Bits bits = to_bits(mask, g.outputs, g.inputs, threads);
  int64_t total = 0;
  for (uint64_t word : bits.storage) total += count_bits(word);
  if (total != g.nonzeros) throw std::invalid_argument("the mask has another number of non-zeros");
  std::vector<int32_t> places(g.outputs * panels_of(pattern.forward));
  pack_forward(pattern.forward, bits, places.data(), threads);
  pack_backward(pattern, bits, places.data(), threads);
}

void gather_dense(const Pattern& pattern, const float* dense, float* values, int threads) {
  parallel_for(blocks_of(pattern.forward), 1, threads, [&](int64_t block, int64_t) {
    each_nonzero(pattern, block, [&](int64_t f, int64_t place) { values[pattern.order[f]] = dense[place]; });
  });
}

void scatter_dense(const Pattern& pattern, const float* values, float* dense, int threads) {
  parallel_for(blocks_of(pattern.forward), 1, threads, [&](int64_t block, int64_t) {
    each_nonzero(pattern, block, [&](int64_t f, int64_t place) { dense[place] = values[pattern.order[f]]; });
  });
}

void transfer(const Pattern& last, const float* old_values, const Pattern& next, float* new_values, int threads) {
  const Half &before = last.forward, &after = next.forward;
  if (before.rows != after.rows || before.columns != after.columns || before.block != after.block ||
      before.panel != after.panel)
    throw std::invalid_argument("two patterns of different geometry");
  parallel_for(blocks_of(after), 1, threads, [&](int64_t block, int64_t) {
    const int64_t rows = rows_in(after, block);
    const uint16_t *old_count = counts_in(before, block), *new_count = counts_in(after, block);
    int64_t o = before.starts[block], n = after.starts[block];
    for (int64_t p = 0; p < panels_of(after); ++p)
      for (int64_t r = 0; r < rows; ++r) {  // both lists ascend: merge them
        const int64_t old_end = o + *old_count++, new_end = n + *new_count++;
        for (; n < new_end; ++n) {
          const uint16_t column = after.index[n];
          while (o < old_end && before.index[o] < column) ++o;
          const bool stays = o < old_end && before.index[o] == column;
          new_values[next.order[n]] = stays ? old_values[last.order[o]] : 0.0f;
        }
        o = old_end;
      }
  });
}

}  // namespace gossamer
