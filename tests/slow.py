"""The formulas of the papers, computed one number at a time. Tests compare the code with them."""

import math


def softmax(z, T=1.0):
    exponentials = [math.exp(value / T) for value in z]
    return [value / sum(exponentials) for value in exponentials]


def cross_entropy(z, y):
    return -math.log(softmax(z)[y])


def kl(t, z, T):
    """sum_c p_c (log p_c - log q_c)"""
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(softmax(t, T), softmax(z, T), strict=True))


def soft_cross_entropy(t, z, T):
    """-sum_c p_c log q_c"""
    return -sum(p * math.log(q) for p, q in zip(softmax(t, T), softmax(z, T), strict=True))


DIVERGENCE = {"KL": kl, "CE": soft_cross_entropy}


def mean(vectors):
    return [sum(values) / len(vectors) for values in zip(*vectors, strict=True)]


# The loss of one image: its true and its group term. z: the logits of each student. An argument that ends with 0 holds
# the values that stand inside sg: they have no gradient.


def dml_group(z, z0, T, D, pairwise):
    """Zhang et al. 2018: z0 teaches z. Each network learns from the mean of the others, or from each of them."""
    m = len(z)
    total = 0.0
    for i in range(m):
        others = [z0[j] for j in range(m) if j != i]
        total += T**2 * (sum(D(t, z[i], T) for t in others) / (m - 1) if pairwise else D(mean(others), z[i], T))
    return total


def ffl(z, s, z0, s0, y, T, D):
    group = D(mean(z0), s, T) + sum(D(s0, z_i, T) for z_i in z)
    return sum(cross_entropy(z_i, y) for z_i in [*z, s]), T**2 * group


def pcl(z, s, s0, mean_peers0, y, T, D):
    m, group = len(z), 0.0
    for i in range(m):
        from_mean_peers = sum(D(mean_peers0[j], z[i], T) for j in range(m) if j != i)
        group += D(s0, z[i], T) + from_mean_peers / (m - 1)
    return sum(cross_entropy(z_i, y) for z_i in [*z, s]), T**2 * group


def kdcl(z, t0, y, T, D):
    return sum(cross_entropy(z_i, y) for z_i in z), T**2 * sum(D(t0, z_i, T) for z_i in z)


def kdcl_target(rule, z, y):
    """naive: the network with the least CE; minlogit: min_i (z_ic - z_iy) of each class c; mean."""
    if rule == "naive":
        return min(z, key=lambda z_i: cross_entropy(z_i, y))
    if rule == "minlogit":
        return [min(z_i[c] - z_i[y] for z_i in z) for c in range(len(z[0]))]
    return mean(z)


def okdph(z, hybrid, z0, hybrid0, y, T, omega, D):
    t = mean([*z0, hybrid0])
    own = omega * sum(cross_entropy(z_i, y) for z_i in z)
    return own + (1 - omega) * cross_entropy(hybrid, y), T**2 * sum(D(t, z_i, T) for z_i in z)


def gradient(f, x, h=1e-5):
    """Of a function of nested lists of numbers, by central differences; in the same nesting."""
    if not isinstance(x, list):
        return (f(x + h) - f(x - h)) / (2 * h)
    return [gradient(lambda value, i=i: f([*x[:i], value, *x[i + 1:]]), x[i], h) for i in range(len(x))]


def attention(W_L, W_E, h, others):
    """alpha_ab = exp((W_L h_a).(W_E h_b)) / sum_f exp((W_L h_a).(W_E h_f)), f over all peers.

    others: f over all but a, and alpha_aa = 0. h: the feature vector of each peer. The numbers are tensors, so that
    gradients can be compared as well.
    """
    rows = []
    for a in range(len(h)):
        weight = {b: ((W_L @ h[a]) @ (W_E @ h[b])).exp() for b in range(len(h)) if not (others and b == a)}
        total = sum(weight.values())
        rows.append([weight.get(b, 0 * total) / total for b in range(len(h))])
    return rows


def calibration_error(logits, labels, bins=15):
    """sum_m |B_m| / n |acc(B_m) - conf(B_m)| (Guo et al. 2017, equation 3).

    B_m: the images with confidence in ((m - 1) / M, m / M], M = ``bins``.
    """
    members = [[] for _ in range(bins)]
    for z, y in zip(logits, labels, strict=True):
        p = softmax(z)
        m = next(m for m in range(1, bins + 1) if (m - 1) / bins < max(p) <= m / bins)
        members[m - 1].append((max(p), p.index(max(p)) == y))
    error = 0.0
    for block in filter(None, members):
        accuracy = sum(right for _, right in block) / len(block)
        confidence = sum(p for p, _ in block) / len(block)
        error += len(block) / len(labels) * abs(accuracy - confidence)
    return error


def accuracy_of_class(logits, labels, c):
    """Accuracy on the images of class c, in %. None if there are none."""
    right = [z.index(max(z)) == y for z, y in zip(logits, labels, strict=True) if y == c]
    return 100 * sum(right) / len(right) if right else None


def count_correct(z, y, k):
    """How many images have fewer than k classes that score higher than the label. Of equal scores the lower class is
    higher."""
    return sum(sum(other > row[label] or (other == row[label] and c < label) for c, other in enumerate(row)) < k
               for row, label in zip(z, y, strict=True))


def rejected_by_holm(p, level):
    """The tests that Holm's procedure rejects: from the smallest p on, while p <= level / (number of tests left)."""
    rejected, left = set(), sorted(range(len(p)), key=lambda i: p[i])
    while left and p[left[0]] <= level / len(left):
        rejected.add(left.pop(0))
    return rejected
