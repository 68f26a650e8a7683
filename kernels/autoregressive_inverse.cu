// The inverse of an autoregressive affine flow in one sweep over the features, as `_inverse_sweep.py` launches it.
//
// Units are in ascending order of degree. A block owns ROWS rows, and keeps the sums of all units of all layers in
// shared memory. As soon as units are known, it adds their part to the sums of all later units. So there is little
// between one feature and the next: the products with the units that have just become known, and two barriers and an
// activation for each layer. A thread adds to units of its own, and loads their weights before it needs them.

template <class T, class C, int ROWS, int THREADS>
struct ForwardSweep : Sweep<T, C, ROWS, THREADS> {
  using Base = Sweep<T, C, ROWS, THREADS>;
  using Base::Base, Base::below, Base::features, Base::known, Base::layers, Base::params, Base::points, Base::stream,
      Base::thread, Base::width;

  // What is to be added to the layer once its inputs of one degree are known: for layer 0 the feature before `place`.
  typename Base::Part part_of(int place, int layer) const {
    const int begin = layer ? below(layer - 1, place) : place - 1;
    const int end = layer ? below(layer - 1, place + 1) : place;
    const int units = below(layer, features);
    const T* rows = this->weights + (static_cast<long long>(layer) * width + begin) * width;
    return this->divide(rows, begin < 0 ? 0 : end - begin, this->sums_of(layer), row_stride(units), below(layer, place),
                        units);
  }

  // Sums begin with what does not depend on the features: the bias and, if there is one, the context's term.
  void begin_sums(int layer, const C* biases, const T* context, const long long* unit_at, int stride, int rows) const {
    const int units = below(layer, features), row_length = row_stride(units);
    C* sums = this->sums_of(layer);
    for (int unit = thread; unit < row_length; unit += THREADS) {
      const C bias = unit < units ? biases[layer * width + unit] : C(0);
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        C sum = bias;
        if (context && unit < units && row < rows) sum += to_float(context[row * stride + unit_at[unit]]);
        sums[row * row_length + unit] = sum;
      }
    }
  }

  // The units of one degree, whose sums are complete, become known.
  void finish_units(int place, int layer, int activation, bool residual) const {
    const int begin = below(layer, place), count = below(layer, place + 1) - begin;
    const int stride = row_stride(below(layer, features));
    const C* sums = this->sums_of(layer) + begin;
    for (int i = thread; i < count * ROWS; i += THREADS) {
      C value = sums[i % ROWS * stride + i / ROWS];
      if (residual && layer % 2 == 0) {
        // A block's layers have units of the same degrees: this thread has written what it reads.
        if (layer) value += stream[i];
        stream[i] = value;
      }
      known[i] = residual && layer == layers - 1 ? value : activate(value, activation);
    }
    this->fill_known(count);
  }

  // The feature, whose parameters are complete, becomes known: one thread a row. Returns the row's log a.
  C finish_feature(int place, int kind) const {
    const C* param = this->sums_of(layers) + thread * row_stride(features * params) + place * params;
    C value = points[place * ROWS + thread];
    Scale<C> scale = {C(0), C(1), C(1)};
    if (kind == KIND_location_only) {
      value -= param[0];
    } else {
      scale = scale_of(param[1], kind);
      value = (value - scale.c * param[0]) / scale.a;
    }
    points[place * ROWS + thread] = value;
    known[thread] = value;
    return scale.log_a;
  }
};

// x_i = (z_i - c(s_i) m_i) / a(s_i), log_det = -sum(log a(s_i)). Known units are the rows of `weights`, which are
// scaled; `counts`, `feature_at` and `unit_at` are those of `sorted_units.py`. With `shares` log_det has the summands.
template <class T, class C, int ROWS, int THREADS>
__global__ void __launch_bounds__(THREADS)
    autoregressive_inverse_fwd(T* x, C* log_det, const T* z, const T* context, const T* weights, const C* biases,
                               const int* counts, const long long* feature_at, const long long* unit_at, int n_rows,
                               int features, int layers, int params, int width, int most, int stride_z,
                               int stride_context, int kind, int activation, int residual, int has_context,
                               int shares) {
  extern __shared__ Chunk memory[];
  const int thread = threadIdx.x;
  const long long first_row = static_cast<long long>(blockIdx.x) * ROWS;
  const int rows = n_rows - first_row < ROWS ? n_rows - first_row : ROWS;
  ForwardSweep<T, C, ROWS, THREADS> sweep(weights, features, layers, params, width);
  sweep.lay_out(memory, counts, 0, layers, most, residual, 1);
  z += first_row * stride_z;
  for (int place = thread; place < features; place += THREADS) {
    for (int row = 0; row < ROWS; ++row) {
      sweep.points[place * ROWS + row] = row < rows ? to_float(z[row * stride_z + feature_at[place]]) : C(0);
    }
  }
  __syncthreads();
  for (int layer = 0; layer <= layers; ++layer) {
    const T* term = has_context && layer == 0 ? context + first_row * stride_context : nullptr;
    sweep.begin_sums(layer, biases, term, unit_at, stride_context, rows);
  }

  C row_log_det = C(0);
  Pack<T, UNITS> ahead[AHEAD] = {};
  auto part = sweep.part_of(0, 0), following = sweep.part_of(0, 1);
  int next_place = 0, next_layer = 1;
  for (int place = 0; place < features; ++place) {
    for (int layer = 0; layer <= layers; ++layer) {
      sweep.add(part, sweep.source_of(following), ahead);
      __syncthreads();  // the layer's sums of this degree are complete
      if (layer < layers) {
        sweep.finish_units(place, layer, activation, residual);
      } else if (thread < ROWS) {
        const C log_a = sweep.finish_feature(place, kind);
        row_log_det -= log_a;
        if (shares && thread < rows) log_det[(first_row + thread) * features + feature_at[place]] = -log_a;
      }
      // While some threads finish units, the others find out what comes after the next part. The last one stays.
      part = following;
      if (++next_layer > layers) {
        next_layer = 0;
        next_place += next_place + 1 < features;
      }
      following = sweep.part_of(next_place, next_layer);
      __syncthreads();  // all threads see what has become known
    }
  }

  x += first_row * features;
  for (int place = thread; place < features; place += THREADS) {
    for (int row = 0; row < rows; ++row) {
      round_to(sweep.points[place * ROWS + row], x[row * features + feature_at[place]]);
    }
  }
  if (!shares && thread < rows) log_det[first_row + thread] = row_log_det;
}
