"""Printed from the tables by `make docs`: to change it, change the tables."""

# ruff: noqa: E501
# fmt: off
from collections.abc import Sequence
from typing import Any, Literal, Protocol, overload

from dred.lazy.tensor import ComplexLazyTensor, LazyTensor

class Array(Protocol):
    """An array of any library, or a LazyTensor."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...

Operand = Array | complex | Sequence[complex]

class Methods:
    def norm(self, dim: int = -1) -> LazyTensor:
        """Length of the vectors (dim=-1 or 2)."""
    @overload
    def __add__(self, other: float) -> LazyTensor: ...
    @overload
    def __add__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __add__(self, other: Operand) -> LazyTensor:
        """Add(f, g) of self, other: f + g."""
    @overload
    def __radd__(self, other: float) -> LazyTensor: ...
    @overload
    def __radd__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __radd__(self, other: Operand) -> LazyTensor:
        """Add(f, g) of other, self: f + g."""
    @overload
    def __sub__(self, other: float) -> LazyTensor: ...
    @overload
    def __sub__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __sub__(self, other: Operand) -> LazyTensor:
        """Subtract(f, g) of self, other: f - g."""
    @overload
    def __rsub__(self, other: float) -> LazyTensor: ...
    @overload
    def __rsub__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __rsub__(self, other: Operand) -> LazyTensor:
        """Subtract(f, g) of other, self: f - g."""
    @overload
    def __mul__(self, other: float) -> LazyTensor: ...
    @overload
    def __mul__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __mul__(self, other: Operand) -> LazyTensor:
        """Mult(f, g) of self, other: f * g."""
    @overload
    def __rmul__(self, other: float) -> LazyTensor: ...
    @overload
    def __rmul__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __rmul__(self, other: Operand) -> LazyTensor:
        """Mult(f, g) of other, self: f * g."""
    @overload
    def __truediv__(self, other: float) -> LazyTensor: ...
    @overload
    def __truediv__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __truediv__(self, other: Operand) -> LazyTensor:
        """Divide(f, g) of self, other: f / g."""
    @overload
    def __rtruediv__(self, other: float) -> LazyTensor: ...
    @overload
    def __rtruediv__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __rtruediv__(self, other: Operand) -> LazyTensor:
        """Divide(f, g) of other, self: f / g."""
    @overload
    def __or__(self, other: float) -> LazyTensor: ...
    @overload
    def __or__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __or__(self, other: Operand) -> LazyTensor:
        """Scalprod(f, g) of self, other: (f | g): sum of f[k] * g[k]."""
    @overload
    def __ror__(self, other: float) -> LazyTensor: ...
    @overload
    def __ror__(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def __ror__(self, other: Operand) -> LazyTensor:
        """Scalprod(f, g) of other, self: (f | g): sum of f[k] * g[k]."""
    def __mod__(self, other: Operand) -> LazyTensor:
        """Mod(f, n, o) of self, other, 0: f - n * floor((f - o) / n), between o and o + n."""
    def __rmod__(self, other: Operand) -> LazyTensor:
        """Mod(f, n, o) of other, self, 0: f - n * floor((f - o) / n), between o and o + n."""
    def __neg__(self) -> LazyTensor:
        """Minus(f) of self: -f."""
    def __abs__(self) -> LazyTensor:
        """Abs(f) of self: absolute value; derivative 0 at 0."""
    def __lt__(self, other: Operand) -> LazyTensor:
        """LessThan(f, g) of self, other: f < g."""
    def __le__(self, other: Operand) -> LazyTensor:
        """LessOrEqual(f, g) of self, other: f <= g."""
    def __gt__(self, other: Operand) -> LazyTensor:
        """LessThan(f, g) of other, self: f < g."""
    def __ge__(self, other: Operand) -> LazyTensor:
        """LessOrEqual(f, g) of other, self: f <= g."""
    def __eq__(self, other: Operand) -> LazyTensor:  # type: ignore[override]
        """Equal(f, g) of self, other: f == g."""
    def __ne__(self, other: Operand) -> LazyTensor:  # type: ignore[override]
        """NotEqual(f, g) of self, other: f != g."""
    def mod(self, modulus: Operand, offset: Operand = 0) -> LazyTensor:
        """Mod(f, n, o) of self, modulus, offset: f - n * floor((f - o) / n), between o and o + n."""
    def round(self, other: int = 0) -> LazyTensor:
        """Round(f, n) of self, other: f to n decimals, halves away from zero."""
    def one_hot(self, D: int) -> LazyTensor:
        """OneHot(f, n) of self, D: n zeros, with 1 at position trunc(f + 1/2) where that is one of them."""
    def bspline(self, x: Operand, k: int = 0) -> LazyTensor:
        """BSpline(t, x, k) of self, x, k: the B-splines of degree k on the knots t, at x."""
    def softdtw_sqdist(self, other: Operand, gamma: Operand) -> LazyTensor:
        """SoftDTW_SqDist(x, y, g) of self, other, gamma: soft dynamic time warping of two series, by squared differences."""
    def sqnormiso(self, other: Operand) -> LazyTensor:
        """SqNormIso(s, f) of other, self: s * |f|^2 for a number s."""
    def sqnormdiag(self, other: Operand) -> LazyTensor:
        """SqNormDiag(s, f) of other, self: sum of s[k] * f[k]^2."""
    def symsqnorm(self, other: Operand) -> LazyTensor:
        """SymSqNorm(A, f) of other, self: sum of A[k, l] * f[k] * f[l]."""
    def weightedsqnorm(self, other: Operand) -> LazyTensor:
        """WeightedSqNorm(A, f) of other, self: SqNormIso, SqNormDiag or SymSqNorm, by the dimension of A."""
    def weightedsqdist(self, g: Operand, s: Operand) -> LazyTensor:
        """WeightedSqDist(A, f, g) of s, self, g: WeightedSqNorm(A, f - g)."""
    def keops_kron(self, other: Operand, dimfself: Sequence[int], dimfother: Sequence[int]) -> LazyTensor:
        """Kron(f, g, df[], dg[]) of self, other, dimfself, dimfother: Kronecker product of tensors of shapes df and dg."""
    @overload
    def grad(self, other: LazyTensor, gradin: Operand) -> LazyTensor: ...
    @overload
    def grad(self, other: ComplexLazyTensor, gradin: Operand) -> ComplexLazyTensor:
        """Grad(F, v, e?) of self, other, gradin: sum over c of e[c] * dF[c] / dv."""
    def diff(self, other: LazyTensor | ComplexLazyTensor, diffin: Operand) -> LazyTensor:
        """Diff(F, v, u) of self, other, diffin: sum over k of u[k] * dF / dv[k]."""
    def grad_matrix(self, other: LazyTensor | ComplexLazyTensor) -> LazyTensor:
        """GradMatrix(F, v) of self, other: dF[c] / dv[k] at c * dim(v) + k."""
    def divergence(self, var: LazyTensor | ComplexLazyTensor) -> LazyTensor:
        """Divergence(F, v) of self, var: sum over k of dF[k] / dv[k]."""
    def laplacian(self, var: LazyTensor | ComplexLazyTensor) -> LazyTensor:
        """Laplacian(F, v) of self, var: sum over k of the second derivatives of F with respect to v[k]."""
    def trace_operator(self, var: LazyTensor | ComplexLazyTensor, w: Operand = 1) -> LazyTensor:
        """TraceOperator(F, v, w?) of self, var, w: sum over k of w[k] * A[k, k] for F = A v."""
    def adjoint_operator(self, var: LazyTensor | ComplexLazyTensor, u: Operand) -> LazyTensor:
        """AdjointOperator(F, v, u) of self, var, u: A^T u for F = A v, linear in v."""
    def sum_lin_operator(self, var: LazyTensor | ComplexLazyTensor, wl: Operand = 1, wr: Operand = 1) -> LazyTensor:
        """SumLinOperator(F, v, wl?, wr?) of self, var, wl, wr: sum over k, l of wl[k] * A[k, l] * wr[l] for F = A v."""
    def factorize(self, other: Operand) -> LazyTensor:
        """Factorize(F, G) of self, other: F, with G computed once."""
    def auto_factorize(self) -> LazyTensor:
        """AutoFactorize(F) of self: F, with whatever occurs several times in it computed once."""
    @overload
    def add(self, other: float) -> LazyTensor: ...
    @overload
    def add(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def add(self, other: Operand) -> LazyTensor:
        """Add(f, g) of self, other: f + g."""
    @overload
    def subtract(self, other: float) -> LazyTensor: ...
    @overload
    def subtract(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def subtract(self, other: Operand) -> LazyTensor:
        """Subtract(f, g) of self, other: f - g."""
    @overload
    def mult(self, other: float) -> LazyTensor: ...
    @overload
    def mult(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def mult(self, other: Operand) -> LazyTensor:
        """Mult(f, g) of self, other: f * g."""
    @overload
    def divide(self, other: float) -> LazyTensor: ...
    @overload
    def divide(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def divide(self, other: Operand) -> LazyTensor:
        """Divide(f, g) of self, other: f / g."""
    def minus(self) -> LazyTensor:
        """Minus(f) of self: -f."""
    def square(self) -> LazyTensor:
        """Square(f) of self: f * f."""
    def inv(self) -> LazyTensor:
        """Inv(f) of self: 1 / f."""
    def pow(self, m: int) -> LazyTensor:
        """Pow(f, m) of self, m: f to the integer power m."""
    def powf(self, other: Operand) -> LazyTensor:
        """Powf(f, g) of self, other: f to the power g."""
    def zeromult(self, other: Operand) -> LazyTensor:
        """ZeroMult(f, g) of self, other: f * g, and 0 where f is 0, even if g is infinite or NaN."""
    @overload
    def scalprod(self, other: float) -> LazyTensor: ...
    @overload
    def scalprod(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def scalprod(self, other: Operand) -> LazyTensor:
        """Scalprod(f, g) of self, other: (f | g): sum of f[k] * g[k]."""
    def lessthan(self, other: Operand) -> LazyTensor:
        """LessThan(f, g) of self, other: f < g."""
    def lessorequal(self, other: Operand) -> LazyTensor:
        """LessOrEqual(f, g) of self, other: f <= g."""
    def equal(self, other: Operand) -> LazyTensor:
        """Equal(f, g) of self, other: f == g."""
    def notequal(self, other: Operand) -> LazyTensor:
        """NotEqual(f, g) of self, other: f != g."""
    def logical_and(self, other: Operand) -> LazyTensor:
        """And(f, g) of self, other: 1 where f and g are not 0, else 0."""
    def logical_or(self, other: Operand) -> LazyTensor:
        """Or(f, g) of self, other: 1 where f or g is not 0, else 0."""
    def logical_not(self) -> LazyTensor:
        """Not(f) of self: 1 where f is 0, else 0."""
    def exp(self) -> LazyTensor:
        """Exp(f) of self: exponential."""
    def expm1(self) -> LazyTensor:
        """Expm1(f) of self: exp(f) - 1, accurate near 0."""
    def log(self) -> LazyTensor:
        """Log(f) of self: natural logarithm."""
    def log1p(self) -> LazyTensor:
        """Log1p(f) of self: log(1 + f), accurate near 0."""
    def xlogx(self) -> LazyTensor:
        """XLogX(f) of self: f * log(f); 0 at 0."""
    def sqrt(self) -> LazyTensor:
        """Sqrt(f) of self: square root; derivative 0 at 0."""
    def rsqrt(self) -> LazyTensor:
        """Rsqrt(f) of self: 1 / sqrt(f); 0 at 0."""
    def sin(self) -> LazyTensor:
        """Sin(f) of self: sine."""
    def cos(self) -> LazyTensor:
        """Cos(f) of self: cosine."""
    def tan(self) -> LazyTensor:
        """Tan(f) of self: tangent."""
    def asin(self) -> LazyTensor:
        """Asin(f) of self: arc sine; derivative 0 at -1 and 1."""
    def acos(self) -> LazyTensor:
        """Acos(f) of self: arc cosine; derivative 0 at -1 and 1."""
    def atan(self) -> LazyTensor:
        """Atan(f) of self: arc tangent."""
    def atan2(self, other: Operand) -> LazyTensor:
        """Atan2(f, g) of self, other: angle of the point with abscissa g and ordinate f, above -pi."""
    def sinh(self) -> LazyTensor:
        """Sinh(f) of self: hyperbolic sine."""
    def cosh(self) -> LazyTensor:
        """Cosh(f) of self: hyperbolic cosine."""
    def tanh(self) -> LazyTensor:
        """Tanh(f) of self: hyperbolic tangent."""
    def sinxdivx(self) -> LazyTensor:
        """SinXDivX(f) of self: sin(f) / f; 1 at 0, derivative 0 there."""
    def sigmoid(self) -> LazyTensor:
        """Sigmoid(f) of self: 1 / (1 + exp(-f)), without overflow."""
    def softplus(self) -> LazyTensor:
        """Softplus(f) of self: log(1 + exp(f)), without overflow."""
    def erf(self) -> LazyTensor:
        """Erf(f) of self: error function."""
    def abs(self) -> LazyTensor:
        """Abs(f) of self: absolute value; derivative 0 at 0."""
    def sign(self) -> LazyTensor:
        """Sign(f) of self: -1, 0 or 1; 0 for NaN."""
    def step(self) -> LazyTensor:
        """Step(f) of self: 0 where f < 0, else 1; 1 for NaN."""
    def relu(self) -> LazyTensor:
        """ReLU(f) of self: 0 where f < 0, else f; derivative 1 at 0."""
    def floor(self) -> LazyTensor:
        """Floor(f) of self: largest integer that is not above f."""
    def ceil(self) -> LazyTensor:
        """Ceil(f) of self: smallest integer that is not below f."""
    def trunc(self) -> LazyTensor:
        """Trunc(f) of self: f without its decimals."""
    def clamp(self, other1: Operand, other2: Operand) -> LazyTensor:
        """Clamp(f, a, b) of self, other1, other2: a where f < a, else b where f > b, else f."""
    def clampint(self, a: int, b: int) -> LazyTensor:
        """ClampInt(f, a, b) of self, a, b: Clamp(f, a, b) for integers a and b."""
    def diffclampint(self, a: int, b: int) -> LazyTensor:
        """DiffClampInt(f, a, b) of self, a, b: 1 where a <= f <= b, else 0."""
    @overload
    def ifelse(self, other1: float, other2: float) -> LazyTensor: ...
    @overload
    def ifelse(self, other1: ComplexLazyTensor | complex, other2: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def ifelse(self, other1: Operand, other2: Operand) -> LazyTensor:
        """IfElse(f, g, h) of self, other1, other2: g where f >= 0, else h."""
    def hypot(self, other: Operand) -> LazyTensor:
        """Hypot(f, g) of self, other: sqrt(f^2 + g^2), without overflow; derivative 0 at the origin."""
    @overload
    def sum(self, axis: Literal[-1, 2] = -1) -> LazyTensor: ...
    @overload
    def sum(self, *, dim: Literal[-1, 2]) -> LazyTensor: ...
    @overload
    def sum(self, axis: int = -1, dim: int | None = None, **how: Any) -> Any:
        """Of components (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduction`: sum of the terms; none: 0."""
    def sumt(self, n: int) -> LazyTensor:
        """SumT(f, n) of self, n: a scalar, repeated n times."""
    def max_component(self) -> LazyTensor:
        """Max(f) of self: largest component."""
    def min_component(self) -> LazyTensor:
        """Min(f) of self: smallest component."""
    def argmax_component(self) -> LazyTensor:
        """ArgMax(f) of self: place of the first largest component."""
    def argmin_component(self) -> LazyTensor:
        """ArgMin(f) of self: place of the first smallest component."""
    def elemt(self, n: int, m: int) -> LazyTensor:
        """ElemT(f, n, m) of self, n, m: n zeros with the scalar f at position m."""
    def extractt(self, start: int, n: int) -> LazyTensor:
        """ExtractT(f, start, n) of self, start, n: n zeros with f from position start on."""
    @overload
    def concat(self, other: float) -> LazyTensor: ...
    @overload
    def concat(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def concat(self, other: Operand) -> LazyTensor:
        """Concat(f, g) of self, other: f, then g."""
    def routed(self, other1: Operand, other2: Operand, n: int) -> LazyTensor:
        """Routed(f, q, parts, n) of self, other1, other2, n: of a stack of vectors of n components, the sum of those components whose row number in q is parts; q holds the higher halves of all, then the lower ones (IndexIParts)."""
    def placed(self, other1: Operand, other2: Operand, k: int) -> LazyTensor:
        """Placed(f, q, parts, k) of self, other1, other2, k: k times f, one after another, and 0 at components whose row number in q is not parts: the transpose of Routed."""
    def sqnorm2(self) -> LazyTensor:
        """SqNorm2(f) of self: sum of the squares."""
    def norm2(self) -> LazyTensor:
        """Norm2(f) of self: Euclidean norm; gradient 0 at 0."""
    def normalize(self) -> LazyTensor:
        """Normalize(f) of self: f / |f|; 0 at 0."""
    def sqdist(self, other: Operand) -> LazyTensor:
        """SqDist(f, g) of self, other: squared distance."""
    def zerotensordot(self, other: Operand, df: Sequence[int], dg: Sequence[int], cf: Sequence[int], cg: Sequence[int], perm: Sequence[int] = ()) -> LazyTensor:
        """ZeroTensorDot(f, g, df[], dg[], cf[], cg[], perm[]?) of self, other, df, dg, cf, cg, perm: TensorDot of products that are 0 where f is 0, even if g is infinite or NaN."""
    @overload
    def matvecmult(self, other: float) -> LazyTensor: ...
    @overload
    def matvecmult(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def matvecmult(self, other: Operand) -> LazyTensor:
        """MatVecMult(A, b) of self, other: matrix A times vector b."""
    @overload
    def vecmatmult(self, other: float) -> LazyTensor: ...
    @overload
    def vecmatmult(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def vecmatmult(self, other: Operand) -> LazyTensor:
        """VecMatMult(b, A) of self, other: vector b times matrix A."""
    @overload
    def tensorprod(self, other: float) -> LazyTensor: ...
    @overload
    def tensorprod(self, other: ComplexLazyTensor | complex) -> ComplexLazyTensor: ...  # type: ignore[overload-overlap]
    @overload
    def tensorprod(self, other: Operand) -> LazyTensor:
        """TensorProd(f, g) of self, other: all products f[k] * g[l]."""
    def complexpair(self, other: Operand) -> ComplexLazyTensor:
        """ComplexPair(f, g) of self, other: f + i g."""
    def real2complex(self) -> ComplexLazyTensor:
        """Real2Complex(f) of self: f + 0 i."""
    def imag2complex(self) -> ComplexLazyTensor:
        """Imag2Complex(f) of self: 0 + i f."""
    def complexrealscal(self, other: Operand) -> ComplexLazyTensor:
        """ComplexRealScal(f, g) of self, other: a real number times a complex vector."""
    def exp1j(self) -> ComplexLazyTensor:
        """ComplexExp1j(f) of self: exp(i f)."""
    def sum_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """sum of the terms; none: 0. See `reduction`."""
    def min_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """smallest of the terms; none: inf. See `reduction`."""
    @overload
    def min(self, axis: Literal[-1, 2] = -1) -> LazyTensor: ...
    @overload
    def min(self, *, dim: Literal[-1, 2]) -> LazyTensor: ...
    @overload
    def min(self, axis: int = -1, dim: int | None = None, **how: Any) -> Any:
        """Of components (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduction`: smallest of the terms; none: inf."""
    def argmin_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """row number of the first smallest term; none: -1. See `reduction`."""
    @overload
    def argmin(self, axis: Literal[-1, 2] = -1) -> LazyTensor: ...
    @overload
    def argmin(self, *, dim: Literal[-1, 2]) -> LazyTensor: ...
    @overload
    def argmin(self, axis: int = -1, dim: int | None = None, **how: Any) -> Any:
        """Of components (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduction`: row number of the first smallest term; none: -1."""
    def min_argmin_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """smallest of the terms and its row number; none: inf, -1. See `reduction`."""
    def min_argmin(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """smallest of the terms and its row number; none: inf, -1. See `reduction`."""
    def Kmin_reduction(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """the K smallest terms in order; none: inf. See `reduction`."""
    def Kmin(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """the K smallest terms in order; none: inf. See `reduction`."""
    def argKmin_reduction(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """row numbers of the K smallest terms in order, lower ones first; none: -1. See `reduction`."""
    def argKmin(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """row numbers of the K smallest terms in order, lower ones first; none: -1. See `reduction`."""
    def Kmin_argKmin_reduction(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """the K smallest terms in order, and their row numbers; none: inf, -1. See `reduction`."""
    def Kmin_argKmin(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """the K smallest terms in order, and their row numbers; none: inf, -1. See `reduction`."""
    def max_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """largest of the terms; none: -inf. See `reduction`."""
    @overload
    def max(self, axis: Literal[-1, 2] = -1) -> LazyTensor: ...
    @overload
    def max(self, *, dim: Literal[-1, 2]) -> LazyTensor: ...
    @overload
    def max(self, axis: int = -1, dim: int | None = None, **how: Any) -> Any:
        """Of components (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduction`: largest of the terms; none: -inf."""
    def argmax_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """row number of the first largest term; none: -1. See `reduction`."""
    @overload
    def argmax(self, axis: Literal[-1, 2] = -1) -> LazyTensor: ...
    @overload
    def argmax(self, *, dim: Literal[-1, 2]) -> LazyTensor: ...
    @overload
    def argmax(self, axis: int = -1, dim: int | None = None, **how: Any) -> Any:
        """Of components (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduction`: row number of the first largest term; none: -1."""
    def max_argmax_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """largest of the terms and its row number; none: -inf, -1. See `reduction`."""
    def max_argmax(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """largest of the terms and its row number; none: -inf, -1. See `reduction`."""
    def Kmax_reduction(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """the K largest terms in order; none: -inf. See `reduction`."""
    def Kmax(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """the K largest terms in order; none: -inf. See `reduction`."""
    def argKmax_reduction(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """row numbers of the K largest terms in order, lower ones first; none: -1. See `reduction`."""
    def argKmax(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """row numbers of the K largest terms in order, lower ones first; none: -1. See `reduction`."""
    def Kmax_argKmax_reduction(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """the K largest terms in order, and their row numbers; none: -inf, -1. See `reduction`."""
    def Kmax_argKmax(self, K: int, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """the K largest terms in order, and their row numbers; none: -inf, -1. See `reduction`."""
    def logsumexp_reduction(self, axis: int | None = None, dim: int | None = None, weight: Operand | None = None, **how: Any) -> Any:
        """log of the sum of exp(F) * G; none: -inf. See `reduction`."""
    def logsumexp(self, axis: int | None = None, dim: int | None = None, weight: Operand | None = None, **how: Any) -> Any:
        """log of the sum of exp(F) * G; none: -inf. See `reduction`."""
    def logsumexpweight_reduction(self, weight: Operand, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """log of the sum of exp(F) * G; none: -inf. See `reduction`."""
    def logsumexpweight(self, weight: Operand, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """log of the sum of exp(F) * G; none: -inf. See `reduction`."""
    def sumsoftmaxweight_reduction(self, weight: Operand, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """mean of G with the weights exp(F); none: NaN. See `reduction`."""
    def sumsoftmaxweight(self, weight: Operand, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """mean of G with the weights exp(F); none: NaN. See `reduction`."""
    def softmax_reduction(self, weight: Operand, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """mean of G with the weights exp(F); none: NaN. See `reduction`."""
    def softmax(self, weight: Operand, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """mean of G with the weights exp(F); none: NaN. See `reduction`."""
    def max_sumshiftexp_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """m, the largest F, and the sum of exp(F - m); none: -inf, 0. See `reduction`."""
    def max_sumshiftexp(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """m, the largest F, and the sum of exp(F - m); none: -inf, 0. See `reduction`."""
    def max_sumshiftexpweight_reduction(self, weight: Operand, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """m, the largest F, and the sum of exp(F - m) * G; none: -inf, 0. See `reduction`."""
    def max_sumshiftexpweight(self, weight: Operand, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """m, the largest F, and the sum of exp(F - m) * G; none: -inf, 0. See `reduction`."""
    def mean_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """mean of the terms; none: NaN. See `reduction`."""
    def mean(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """mean of the terms; none: NaN. See `reduction`."""
    def variance_reduction(self, axis: int | None = None, dim: int | None = None, ddof: int = 0, **how: Any) -> Any:
        """mean squared distance from the mean; of at most ddof terms: NaN. See `reduction`."""
    def variance(self, axis: int | None = None, dim: int | None = None, ddof: int = 0, **how: Any) -> Any:
        """mean squared distance from the mean; of at most ddof terms: NaN. See `reduction`."""
    def prod_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """product of the terms; none: 1. See `reduction`."""
    def prod(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """product of the terms; none: 1. See `reduction`."""
    def any_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """whether a term is not 0; none: False. See `reduction`."""
    def any(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """whether a term is not 0; none: False. See `reduction`."""
    def all_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """whether no term is 0; none: True. See `reduction`."""
    def all(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """whether no term is 0; none: True. See `reduction`."""
    def count_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """number of the terms that are not 0. See `reduction`."""
    def count(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """number of the terms that are not 0. See `reduction`."""
    def histogram_reduction(self, edges: Sequence[float], axis: int | None = None, dim: int | None = None, weight: Operand | None = None, **how: Any) -> Any:
        """number of the terms in each bin, or the sum of their G; the last bin is closed. See `reduction`."""
    def histogram(self, edges: Sequence[float], axis: int | None = None, dim: int | None = None, weight: Operand | None = None, **how: Any) -> Any:
        """number of the terms in each bin, or the sum of their G; the last bin is closed. See `reduction`."""

class ComplexMethods:
    def norm(self, dim: int = -1) -> LazyTensor:
        """Length of the vectors (dim=-1 or 2)."""
    def __add__(self, other: Operand) -> ComplexLazyTensor:
        """Add(f, g) of self, other: f + g."""
    def __radd__(self, other: Operand) -> ComplexLazyTensor:
        """Add(f, g) of other, self: f + g."""
    def __sub__(self, other: Operand) -> ComplexLazyTensor:
        """Subtract(f, g) of self, other: f - g."""
    def __rsub__(self, other: Operand) -> ComplexLazyTensor:
        """Subtract(f, g) of other, self: f - g."""
    def __mul__(self, other: Operand) -> ComplexLazyTensor:
        """Mult(f, g) of self, other: f * g."""
    def __rmul__(self, other: Operand) -> ComplexLazyTensor:
        """Mult(f, g) of other, self: f * g."""
    def __truediv__(self, other: Operand) -> ComplexLazyTensor:
        """Divide(f, g) of self, other: f / g."""
    def __rtruediv__(self, other: Operand) -> ComplexLazyTensor:
        """Divide(f, g) of other, self: f / g."""
    def __or__(self, other: Operand) -> ComplexLazyTensor:
        """Scalprod(f, g) of self, other: (f | g): sum of f[k] * g[k]."""
    def __ror__(self, other: Operand) -> ComplexLazyTensor:
        """Scalprod(f, g) of other, self: (f | g): sum of f[k] * g[k]."""
    def __neg__(self) -> ComplexLazyTensor:
        """Minus(f) of self: -f."""
    def __abs__(self) -> LazyTensor:
        """Abs(f) of self: absolute value; derivative 0 at 0."""
    @overload
    def grad(self, other: LazyTensor, gradin: Operand) -> LazyTensor: ...
    @overload
    def grad(self, other: ComplexLazyTensor, gradin: Operand) -> ComplexLazyTensor:
        """Grad(F, v, e?) of self, other, gradin: sum over c of e[c] * dF[c] / dv."""
    def diff(self, other: LazyTensor | ComplexLazyTensor, diffin: Operand) -> ComplexLazyTensor:
        """Diff(F, v, u) of self, other, diffin: sum over k of u[k] * dF / dv[k]."""
    def factorize(self, other: Operand) -> ComplexLazyTensor:
        """Factorize(F, G) of self, other: F, with G computed once."""
    def auto_factorize(self) -> ComplexLazyTensor:
        """AutoFactorize(F) of self: F, with whatever occurs several times in it computed once."""
    def add(self, other: Operand) -> ComplexLazyTensor:
        """Add(f, g) of self, other: f + g."""
    def subtract(self, other: Operand) -> ComplexLazyTensor:
        """Subtract(f, g) of self, other: f - g."""
    def mult(self, other: Operand) -> ComplexLazyTensor:
        """Mult(f, g) of self, other: f * g."""
    def divide(self, other: Operand) -> ComplexLazyTensor:
        """Divide(f, g) of self, other: f / g."""
    def minus(self) -> ComplexLazyTensor:
        """Minus(f) of self: -f."""
    def square(self) -> ComplexLazyTensor:
        """Square(f) of self: f * f."""
    def inv(self) -> ComplexLazyTensor:
        """Inv(f) of self: 1 / f."""
    def pow(self, m: int) -> ComplexLazyTensor:
        """Pow(f, m) of self, m: f to the integer power m."""
    def scalprod(self, other: Operand) -> ComplexLazyTensor:
        """Scalprod(f, g) of self, other: (f | g): sum of f[k] * g[k]."""
    def exp(self) -> ComplexLazyTensor:
        """Exp(f) of self: exponential."""
    def abs(self) -> LazyTensor:
        """Abs(f) of self: absolute value; derivative 0 at 0."""
    @overload
    def sum(self, axis: Literal[-1, 2] = -1) -> ComplexLazyTensor: ...
    @overload
    def sum(self, *, dim: Literal[-1, 2]) -> ComplexLazyTensor: ...
    @overload
    def sum(self, axis: int = -1, dim: int | None = None, **how: Any) -> Any:
        """Of components (axis=-1 or 2), a ComplexLazyTensor; over i or j (axis=0 or 1), see `reduction`: sum of the terms; none: 0."""
    def sumt(self, n: int) -> ComplexLazyTensor:
        """SumT(f, n) of self, n: a scalar, repeated n times."""
    def concat(self, other: Operand) -> ComplexLazyTensor:
        """Concat(f, g) of self, other: f, then g."""
    def sqnorm2(self) -> LazyTensor:
        """SqNorm2(f) of self: sum of the squares."""
    def norm2(self) -> LazyTensor:
        """Norm2(f) of self: Euclidean norm; gradient 0 at 0."""
    def normalize(self) -> ComplexLazyTensor:
        """Normalize(f) of self: f / |f|; 0 at 0."""
    def sqdist(self, other: Operand) -> LazyTensor:
        """SqDist(f, g) of self, other: squared distance."""
    def matvecmult(self, other: Operand) -> ComplexLazyTensor:
        """MatVecMult(A, b) of self, other: matrix A times vector b."""
    def vecmatmult(self, other: Operand) -> ComplexLazyTensor:
        """VecMatMult(b, A) of self, other: vector b times matrix A."""
    def tensorprod(self, other: Operand) -> ComplexLazyTensor:
        """TensorProd(f, g) of self, other: all products f[k] * g[l]."""
    def complexadd(self, other: Operand) -> ComplexLazyTensor:
        """ComplexAdd(f, g) of self, other: f + g."""
    def complexsubtract(self, other: Operand) -> ComplexLazyTensor:
        """ComplexSubtract(f, g) of self, other: f - g."""
    def complexmult(self, other: Operand) -> ComplexLazyTensor:
        """ComplexMult(f, g) of self, other: f * g."""
    def complexrealscal(self, other: Operand) -> ComplexLazyTensor:
        """ComplexRealScal(f, g) of self, other: a real number times a complex vector."""
    def complexdivide(self, other: Operand) -> ComplexLazyTensor:
        """ComplexDivide(f, g) of self, other: f / g."""
    def complexsquareabs(self) -> LazyTensor:
        """ComplexSquareAbs(f) of self: re^2 + im^2."""
    def complexabs(self) -> LazyTensor:
        """ComplexAbs(f) of self: absolute value; gradient 0 at 0."""
    def angle(self) -> LazyTensor:
        """ComplexAngle(f) of self: angle, between -pi and pi."""
    def complexexp(self) -> ComplexLazyTensor:
        """ComplexExp(f) of self: exponential."""
    def complexsum(self) -> ComplexLazyTensor:
        """ComplexSum(f) of self: sum of the components."""
    def complexsumt(self, m: int) -> ComplexLazyTensor:
        """ComplexSumT(f, m) of self, m: a complex number, repeated m / 2 times."""
    def sum_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """sum of the terms; none: 0. See `reduction`."""
    def mean_reduction(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """mean of the terms; none: NaN. See `reduction`."""
    def mean(self, axis: int | None = None, dim: int | None = None, **how: Any) -> Any:
        """mean of the terms; none: NaN. See `reduction`."""
