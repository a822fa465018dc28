"""Normalizing flows from invertible layers. Directions: `forward` is data to latent, `inverse` latent to data."""

from p4torch.flows import models as models
from p4torch.flows.activations import BentIdentity
from p4torch.flows.bijection import Bijection, Chain, Inverse, Swap
from p4torch.flows.coupling import AffineCoupling
from p4torch.flows.distribution import FlowDistribution
from p4torch.flows.flow import Flow, NormalAndUniform, StandardNormal
from p4torch.flows.inference import for_inference
from p4torch.flows.linear import InvertibleLinear
from p4torch.flows.mlp import InvertibleMLP
from p4torch.flows.monotone import wrapped
from p4torch.flows.partial import Partial
from p4torch.flows.path_gradient import path_loss
from p4torch.flows.spline import SplineCoupling
from p4torch.flows.spline_features import Spline
from p4torch.flows.standardize import Standardize
from p4torch.flows.support import Dequantize, InverseSoftplus, Log, Logit
from p4torch.flows.transform import Transform
from p4torch.flows.volume import VolumePreserving

__all__ = [
    "AffineCoupling",
    "BentIdentity",
    "Bijection",
    "Chain",
    "Dequantize",
    "Flow",
    "FlowDistribution",
    "Inverse",
    "InverseSoftplus",
    "InvertibleLinear",
    "InvertibleMLP",
    "Log",
    "Logit",
    "NormalAndUniform",
    "Partial",
    "Spline",
    "SplineCoupling",
    "StandardNormal",
    "Standardize",
    "Swap",
    "Transform",
    "VolumePreserving",
    "for_inference",
    "path_loss",
    "wrapped",
]
