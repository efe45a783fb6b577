"""The paper's formulas written out one number at a time: the oracles of the tests."""

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
