// The gradient of the inverse, in one sweep from the last feature to the first: as `autoregressive_inverse.cu`, with
// adjoints of units, before their activations, in the place of units.

template <class T, class C, int ROWS, int THREADS>
struct BackwardSweep : Sweep<T, C, ROWS, THREADS> {
  using Base = Sweep<T, C, ROWS, THREADS>;
  using Base::Base, Base::below, Base::features, Base::known, Base::layers, Base::params, Base::points, Base::stream,
      Base::thread, Base::width;

  // What is to be added to the layer, or to the features as layer -1, once the adjoints of the next one are known.
  typename Base::Part part_of(int place, int layer) const {
    const int begin = below(layer + 1, place), inputs = below(layer + 1, place + 1) - begin;
    const T* rows = this->weights + (static_cast<long long>(layer + 1) * width + begin) * width;
    return this->divide(rows, inputs, this->sums_of(layer), row_stride(below(layer, features)), 0,
                        below(layer, layer < 0 ? place : place + 1));
  }

  void clear_sums() const {
    for (C* sum = this->sums + thread; sum < known; sum += THREADS) *sum = C(0);
  }

  // What gives the slope of unit `i / ROWS` among those of one degree, in row `i % ROWS`.
  C kept_of(const T* kept, int i, int place, int layer, int rows) const {
    const int begin = below(layer, place), row = i % ROWS, unit = begin + i / ROWS;
    if (unit >= below(layer, place + 1) || row >= rows) return C(0);
    return to_float(kept[(static_cast<long long>(row) * layers + layer) * width + unit]);
  }

  // The adjoints of the units of one degree, whose sums are complete, become known. `first_kept` is that of `thread`.
  void finish_units(int place, int layer, const T* kept, C first_kept, int rows, int activation, bool residual) const {
    const int begin = below(layer, place), count = below(layer, place + 1) - begin;
    const int stride = row_stride(below(layer, features));
    const C* sums = this->sums_of(layer) + begin;
    for (int i = thread; i < count * ROWS; i += THREADS) {
      C value = sums[i % ROWS * stride + i / ROWS];
      const bool joins = residual && layer % 2 == 0;
      if (!residual || layer < layers - 1) {
        value = through(value, i == thread ? first_kept : kept_of(kept, i, place, layer, rows), activation);
        if (joins) value += stream[i];
      }
      if (joins) stream[i] = value;
      known[i] = value;
    }
    this->fill_known(count);
  }

  // The adjoints of the feature's shift and scale logit become known: one thread a row. The features have d_x, which
  // lam replaces, and then m, s and x.
  void finish_feature(int place, int kind, C d_log_det) const {
    C* point = points + place * ROWS + thread;
    const int apart = features * ROWS;
    C lam = point[0] - this->sums_of(-1)[thread * row_stride(features) + place];
    if (kind == KIND_location_only) {
      known[thread] = lam;
    } else {
      const C m = point[apart], s = point[2 * apart], x = point[3 * apart];
      const Scale<C> scale = scale_of(s, kind);
      const Slopes<C> slopes = slopes_of(s, scale, kind);
      lam = lam / scale.a;
      known[thread] = scale.c * lam;
      const C d_s = (scale.a * x * lam + d_log_det) * slopes.log_a + slopes.c * m * lam;
      known[ROWS + thread] = inside_clamp(d_s, s, kind);
    }
    point[0] = lam;
  }
};

// lam_i = (d_x_i - what later features send back to i) / a(s_i). Known units are the rows of `weights`, which are
// scaled; `kept` (rows, layers, width) gives the slopes, and `values` has the parameters. d_log_det has a number for
// each row, with `shares` one for each of its features.
template <class T, class C, int ROWS, int THREADS>
__global__ void __launch_bounds__(THREADS)
    autoregressive_inverse_solve(T* lam, const T* d_x, const C* d_log_det, const T* x, const T* values, const T* kept,
                                 const T* weights, const int* counts, const long long* feature_at, int n_rows,
                                 int features, int layers, int params, int width, int most, int stride_d_x,
                                 int stride_x, int stride_params, int param_stride, int feature_stride, int kind,
                                 int activation, int residual, int shares) {
  extern __shared__ Chunk memory[];
  const int thread = threadIdx.x;
  const long long first_row = static_cast<long long>(blockIdx.x) * ROWS;
  const int rows = n_rows - first_row < ROWS ? n_rows - first_row : ROWS;
  BackwardSweep<T, C, ROWS, THREADS> sweep(weights, features, layers, params, width);
  sweep.lay_out(memory, counts, -1, layers - 1, most, residual, 4);
  d_x += first_row * stride_d_x;
  x += first_row * stride_x;
  values += first_row * stride_params;
  kept += first_row * layers * width;
  for (int place = thread; place < features; place += THREADS) {
    const long long feature = feature_at[place];
    for (int row = 0; row < ROWS; ++row) {
      const T* param = values + row * stride_params + feature * feature_stride;
      C* point = sweep.points + place * ROWS + row;
      const int apart = features * ROWS;
      point[0] = row < rows ? to_float(d_x[row * stride_d_x + feature]) : C(0);
      if (params == 1) continue;
      point[apart] = row < rows ? to_float(param[0]) : C(0);
      point[2 * apart] = row < rows ? to_float(param[param_stride]) : C(0);
      point[3 * apart] = row < rows ? to_float(x[row * stride_x + feature]) : C(0);
    }
  }
  d_log_det += (first_row + thread) * (shares ? features : 1);
  // Where the row has one number it is read once.
  C d_log = thread < rows && !shares ? *d_log_det : C(0);
  sweep.clear_sums();
  __syncthreads();

  Pack<T, UNITS> ahead[AHEAD];
  auto part = sweep.part_of(features - 1, layers - 1), following = sweep.part_of(features - 1, layers - 2);
  int next_place = features - 1, next_layer = layers - 2;
  sweep.load_all(sweep.source_of(part), ahead);
  for (int place = features - 1; place >= 0; --place) {
    if (shares && thread < rows) d_log = d_log_det[feature_at[place]];
    if (thread < ROWS) sweep.finish_feature(place, kind, d_log);
    sweep.fill_known(params);
    __syncthreads();  // all threads see what has become known
    for (int layer = layers - 1; layer >= -1; --layer) {
      const C first_kept = layer < 0 ? C(0) : sweep.kept_of(kept, thread, place, layer, rows);
      sweep.add(part, sweep.source_of(following), ahead);
      __syncthreads();  // the layer's sums of this degree are complete
      if (layer >= 0) sweep.finish_units(place, layer, kept, first_kept, rows, activation, residual);
      // While some threads finish units, the others find out what comes after the next part. The last one stays.
      part = following;
      if (--next_layer < -1) {
        next_layer = layers - 1;
        next_place -= next_place > 0;
      }
      following = sweep.part_of(next_place, next_layer);
      if (layer >= 0) __syncthreads();
    }
  }

  lam += first_row * features;
  for (int place = thread; place < features; place += THREADS) {
    for (int row = 0; row < rows; ++row) {
      round_to(sweep.points[place * ROWS + row], lam[row * features + feature_at[place]]);
    }
  }
}
