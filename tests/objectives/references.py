"""Class moments and batch-norm losses of one batch, by the parts that refinement joins."""

import torch

from gendistill.objectives.refinement import RealMoments, normalised_gap


def class_moments(inputs, labels, classes):
    """(mean (K,C), variance (K,C), images (K,)) over rows and positions by class; zeros for an absent class."""
    blank = {"a": torch.zeros(classes, inputs.shape[1])}
    real = RealMoments.of(labels, blank, blank)
    found = real.by_class(*real.of_images({"a": inputs}, len(labels)))
    mean, variance = (blank["a"].index_copy(0, labels.unique(), part) for part in found)
    return mean, variance, labels.bincount(minlength=classes)


def batch_norm_loss(inputs, labels, means, variances, gap=normalised_gap):
    """``gap`` of one batch's inputs and the real moments (K,C) by layer."""
    means, variances = ({name: part[name] for name in inputs} for part in (means, variances))
    real = RealMoments.of(labels, means, variances)
    return gap(*real.by_class(*real.of_images(inputs, len(labels))), real)
