// Arithmetic of the CUDA sources: half types, packs of numbers, activations, affine steps. `_inverse_sweep.py` puts the
// numbers of activations and kinds in front. Nothing of CUDA's headers is used. Tests compile the sources as C++, too,
// after tests/csrc/emulated_cuda.h.

struct float16 {
  unsigned short bits;
};
struct bfloat16 {
  unsigned short bits;
};

#ifdef __CUDACC__
inline float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
inline void round_to(float x, float16& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
inline float to_float(bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
inline void round_to(float x, bfloat16& y) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
#else
inline float to_float(float16 x) { return emulation::float_of_half(x.bits); }
inline void round_to(float x, float16& y) { y.bits = emulation::half_of_float(x); }
inline float to_float(bfloat16 x) { return emulation::float_of_bfloat16(x.bits); }
inline void round_to(float x, bfloat16& y) { y.bits = emulation::bfloat16_of_float(x); }
#endif
inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }
inline void round_to(float x, float& y) { y = x; }
inline void round_to(double x, double& y) { y = x; }

// N numbers of one access, or of several of 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

inline float exp_of(float x) { return expf(x); }
inline double exp_of(double x) { return exp(x); }
inline float expm1_of(float x) { return expm1f(x); }
inline double expm1_of(double x) { return expm1(x); }
inline float log_of(float x) { return logf(x); }
inline double log_of(double x) { return log(x); }
inline float log1p_of(float x) { return log1pf(x); }
inline double log1p_of(double x) { return log1p(x); }
inline float tanh_of(float x) { return tanhf(x); }
inline double tanh_of(double x) { return tanh(x); }
inline float erf_of(float x) { return erff(x); }
inline double erf_of(double x) { return erf(x); }

template <class C>
inline C abs_of(C x) {
  return x < C(0) ? -x : x;
}

template <class C>
inline C sigmoid(C x) {
  const C e = exp_of(-abs_of(x)), r = C(1) / (C(1) + e);
  return x < C(0) ? e * r : r;
}

template <class C>
inline C softplus(C x) {
  return (x > C(0) ? x : C(0)) + log1p_of(exp_of(-abs_of(x)));
}

// NaN stays NaN: the comparisons pass it on.
template <class C>
inline C activate(C x, int activation) {
  switch (activation) {
    case ACTIVATION_relu:
      return x < C(0) ? C(0) : x;
    case ACTIVATION_elu:
      return x > C(0) ? x : expm1_of(x);
    case ACTIVATION_tanh:
      return tanh_of(x);
    case ACTIVATION_softplus:
      return softplus(x);
    case ACTIVATION_gelu:
      return C(0.5) * x * (C(1) + erf_of(x * C(0.7071067811865476)));
    case ACTIVATION_silu:
      return x * sigmoid(x);
    default:
      return x;
  }
}

// The derivative, from the pre-activation (gelu, silu) or the output (the others); relu selects, see `through`.
template <class C>
inline C slope_of(C kept, int activation) {
  switch (activation) {
    case ACTIVATION_elu:
      return kept > C(0) ? C(1) : kept + C(1);
    case ACTIVATION_tanh:
      return C(1) - kept * kept;
    case ACTIVATION_softplus:
      return -expm1_of(-kept);
    case ACTIVATION_gelu: {
      const C density = exp_of(C(-0.5) * kept * kept) * C(0.3989422804014327);
      return C(0.5) * (C(1) + erf_of(kept * C(0.7071067811865476))) + kept * density;
    }
    case ACTIVATION_silu: {
      const C s = sigmoid(kept);
      return s + kept * s * (C(1) - s);
    }
    default:
      return C(1);
  }
}

// The gradient to the pre-activation. Where relu is 0, an infinite gradient becomes 0, too.
template <class C>
inline C through(C gradient, C kept, int activation) {
  if (activation == ACTIVATION_relu) return kept <= C(0) ? C(0) : gradient;
  return gradient * slope_of(kept, activation);
}

// Unlike fmin and fmax, passes NaN on.
template <class C>
inline C clamp(C x, C low, C high) {
  return x < low ? low : x > high ? high : x;
}

// An affine step's scale a(s) and shift factor c(s); see the reference for the table.
template <class C>
struct Scale {
  C log_a, a, c;
};

template <class C>
inline Scale<C> scale_of(C s, int kind) {
  switch (kind) {
    case KIND_gated: {
      const C x = clamp(s, C(-30), C(30)), e = exp_of(-abs_of(x)), r = C(1) / (C(1) + e);
      const C log_a = (x < C(0) ? x : C(0)) - log1p_of(e);
      return {log_a, x < C(0) ? e * r : r, x < C(0) ? r : e * r};
    }
    case KIND_softplus: {
      const C a = softplus(s) + C(1e-3);
      return {log_of(a), a, C(1)};
    }
    case KIND_sigmoid: {
      const C a = sigmoid(s) + C(1e-3);
      return {log_of(a), a, C(1)};
    }
    case KIND_exp: {
      const C log_a = s / (C(1) + abs_of(s) / C(6.907755278982137));  // log 1000
      return {log_a, exp_of(log_a), C(1)};
    }
    case KIND_clamped_exp: {
      const C log_a = clamp(s, C(-5), C(3));
      return {log_a, exp_of(log_a), C(1)};
    }
    case KIND_iaf_release: {
      const C log_a = clamp(s, C(-300), C(300)) * C(-0.1), a = exp_of(log_a);
      return {log_a, a, a * C(-0.1)};
    }
    default:
      return {C(0), C(1), C(1)};
  }
}

// The derivatives of log a and of c with respect to s, where s is inside of the clamp.
template <class C>
struct Slopes {
  C log_a, c;
};

template <class C>
inline Slopes<C> slopes_of(C s, const Scale<C>& scale, int kind) {
  switch (kind) {
    case KIND_gated:
      return {scale.c, -scale.a * scale.c};
    case KIND_softplus:
      return {sigmoid(s) / scale.a, C(0)};
    case KIND_sigmoid:
      return {sigmoid(s) * sigmoid(-s) / scale.a, C(0)};
    case KIND_exp: {
      const C root = C(1) / (C(1) + abs_of(s) / C(6.907755278982137));  // log 1000
      return {root * root, C(0)};
    }
    case KIND_clamped_exp:
      return {C(1), C(0)};
    case KIND_iaf_release:
      return {C(-0.1), scale.c * C(-0.1)};
    default:
      return {C(0), C(0)};
  }
}

// The gradient of s: 0 beyond the clamp, whatever d_s is there.
template <class C>
inline C inside_clamp(C d_s, C s, int kind) {
  switch (kind) {
    case KIND_gated:
      return s >= C(-30) && s <= C(30) ? d_s : C(0);
    case KIND_clamped_exp:
      return s >= C(-5) && s <= C(3) ? d_s : C(0);
    case KIND_iaf_release:
      return s >= C(-300) && s <= C(300) ? d_s : C(0);
    default:
      return d_s;
  }
}
