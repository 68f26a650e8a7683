// A sweep through a masked network by ascending or descending degree. As soon as units are known, their part is added
// to the sums of others. This follows `_sweep_maths.cuh`.

// Units of one thread, and inputs whose weights it holds before they are known.
constexpr int UNITS = 4, AHEAD = 8;
// Inputs that are multiplied at once; `known` is zero up to a multiple of it.
constexpr int TOGETHER = 4;

// Numbers between the rows of a layer's sums: rows differ by 4 banks, so that 8 rows of 4 units are read at once.
inline int row_stride(int units) { return (units + 31) / 32 * 32 + 4; }

struct alignas(16) Chunk {
  unsigned char bytes[16];
};

// What one thread of a block knows of the network: T is what weights are stored in, C what sums are made in. Layer -1
// is that of the features, `layers` that of the outputs, of which a feature has `params`. Units are in ascending order.
template <class T, class C, int ROWS, int THREADS>
struct Sweep {
  using Weights = Pack<T, UNITS>;

  // Few rows a thread: more of them would leave threads idle where units are few, but would read fewer weights.
  static constexpr int LEAST_ROWS = ROWS < 4 ? 1 : ROWS / 4;

  // Weights of one thread: those of `count` inputs and of UNITS units.
  struct Source {
    const T* from;
    int count;
  };

  // One thread's part of the products of one layer: units first, first + step, ... below stop, and `rows` rows.
  struct Part {
    const T* weights;  // of unit 0 and the first known input
    C* sums;           // of unit 0 and the part's first row
    int inputs, first, stop, step, stride, row, rows;
  };

  const T* weights;  // (layers + 1, width, width); a row has the weights of one input
  int features, layers, params, width, thread;
  C *sums, *known, *stream, *points;
  const int* counts;
  int* bases;

  Sweep(const T* weights, int features, int layers, int params, int width)
      : weights(weights), features(features), layers(layers), params(params), width(width), thread(threadIdx.x) {}

  // Lays out the shared memory: sums of layers first, ..., last, known units, the residual stream, `numbers` of each
  // feature and row, and tables. All threads must have done so before one reads.
  void lay_out(Chunk* memory, const int* all_counts, int first, int last, int most, bool residual, int numbers) {
    counts = all_counts;
    sums = reinterpret_cast<C*>(memory);
    known = sums;
    for (int layer = first; layer <= last; ++layer) known += ROWS * row_stride(below(layer, features));
    stream = known + (most + TOGETHER - 1) / TOGETHER * TOGETHER * ROWS;
    points = stream + (residual ? most * ROWS : 0);
    int* tables = reinterpret_cast<int*>(points + numbers * features * ROWS);
    bases = tables + layers * (features + 1);
    if (thread == 0) {
      int base = 0;
      for (int layer = first; layer <= last; ++layer) {
        bases[layer + 1] = base;
        base += ROWS * row_stride(below(layer, features));
      }
    }
    for (int i = thread; i < layers * (features + 1); i += THREADS) tables[i] = all_counts[i];
    counts = tables;
  }

  C* sums_of(int layer) const { return sums + bases[layer + 1]; }

  // How many units of the layer have a degree below `degree`; for the features, a place instead of a degree.
  int below(int layer, int degree) const {
    if (layer < 0) return degree;
    return layer == layers ? degree * params : counts[layer * (features + 1) + degree];
  }

  // Shares units first, ..., stop - 1 of a layer among the threads. The known inputs' weights begin at `rows`.
  Part divide(const T* rows, int inputs, C* layer_sums, int stride, int first, int stop) const {
    // Where units are few, several threads share them, and each takes some of the rows.
    int halvings = 0;
    first = first / UNITS * UNITS;
    while (ROWS >> halvings > LEAST_ROWS && (stop - first) << halvings <= UNITS * THREADS / 2) ++halvings;
    const int threads = THREADS >> halvings, turn = (thread << halvings) / THREADS;
    Part part;
    part.weights = rows;
    part.inputs = inputs;
    part.first = first + UNITS * (thread - turn * threads);
    part.stop = stop;
    part.step = UNITS * threads;
    part.stride = stride;
    part.rows = ROWS >> halvings;
    part.row = turn * part.rows;
    part.sums = layer_sums + part.row * stride;
    return part;
  }

  Source source_of(const Part& part, int unit, int input) const {
    return {part.weights + static_cast<long long>(input) * width + unit, unit < part.stop ? part.inputs - input : 0};
  }

  Source source_of(const Part& part) const { return source_of(part, part.first, 0); }

  Weights load(const Source& source, int input) const {
    Weights loaded = {};
    if (input < source.count) loaded = *reinterpret_cast<const Weights*>(source.from + input * width);
    return loaded;
  }

  void load_all(const Source& source, Weights (&ahead)[AHEAD]) const {
#pragma unroll
    for (int j = 0; j < AHEAD; ++j) ahead[j] = load(source, j);
  }

  template <int R, int N>
  void multiply(C (&total)[R][UNITS], const Weights (&now)[TOGETHER], const C* inputs) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const Pack<C, R> input = *reinterpret_cast<const Pack<C, R>*>(inputs + j * ROWS);
#pragma unroll
      for (int i = 0; i < UNITS; ++i) {
        const C weight = to_float(now[j].at[i]);
#pragma unroll
        for (int r = 0; r < R; ++r) total[r][i] += weight * input.at[r];
      }
    }
  }

  // Adds a part of R rows. `ahead` holds the part's first weights before, and those of `following` after it.
  template <int R>
  void add_rows(const Part& part, const Source& following, Weights (&ahead)[AHEAD]) const {
    for (int unit = part.first; unit < part.stop; unit += part.step) {
      // A sum of its own for each degree: errors grow with the number of terms that are added one after another.
      C total[R][UNITS] = {};
      for (int input = 0; input < part.inputs; input += AHEAD) {
        const int left = part.inputs - input;
        const bool same = left > AHEAD, more = unit + part.step < part.stop;
        const Source next = same   ? source_of(part, unit, input + AHEAD)
                            : more ? source_of(part, unit + part.step, 0)
                                   : following;
        const C* inputs = known + input * ROWS + part.row;
#pragma unroll
        for (int begin = 0; begin < AHEAD; begin += TOGETHER) {
          Weights now[TOGETHER];
#pragma unroll
          for (int j = 0; j < TOGETHER; ++j) {
            now[j] = ahead[begin + j];
            ahead[begin + j] = load(next, begin + j);
          }
          if (left == begin + 1) {
            multiply<R, 1>(total, now, inputs + begin * ROWS);
          } else if (left > begin) {
            multiply<R, TOGETHER>(total, now, inputs + begin * ROWS);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        Pack<C, UNITS>& cell = *reinterpret_cast<Pack<C, UNITS>*>(part.sums + r * part.stride + unit);
        Pack<C, UNITS> sum = cell;
#pragma unroll
        for (int i = 0; i < UNITS; ++i) sum.at[i] += total[r][i];
        cell = sum;
      }
    }
  }

  template <int R = ROWS>
  void add(const Part& part, const Source& following, Weights (&ahead)[AHEAD]) const {
    if (part.inputs == 0 || part.first >= part.stop) {
      load_all(following, ahead);
    } else if (part.rows == R) {
      add_rows<R>(part, following, ahead);
    } else if constexpr (R > LEAST_ROWS) {
      add<R / 2>(part, following, ahead);
    }
  }

  // Zeros behind `count` known units, up to a whole number of those that are multiplied at once.
  void fill_known(int count) const {
    const int end = (count + TOGETHER - 1) / TOGETHER * TOGETHER * ROWS;
    for (int i = count * ROWS + thread; i < end; i += THREADS) known[i] = C(0);
  }
};
