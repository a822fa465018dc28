"""Normalizing flows from invertible layers. Directions: `forward` is data to latent, `inverse` latent to data."""

from p4torch.flows import models as models
from p4torch.flows.activations import BentIdentity
from p4torch.flows.bijection import Bijection, Chain, Inverse, Swap
from p4torch.flows.coupling import AffineCoupling
from p4torch.flows.distribution import FlowDistribution
from p4torch.flows.flow import Flow, NormalAndUniform, StandardNormal
from p4torch.flows.glow import Glow
from p4torch.flows.image_coupling import ConvCoupling
from p4torch.flows.images import ActNorm2d, InvertibleConv1x1, Squeeze, fit_actnorm
from p4torch.flows.inference import for_inference
from p4torch.flows.linear import InvertibleLinear
from p4torch.flows.mlp import InvertibleMLP
from p4torch.flows.monotone import wrapped
from p4torch.flows.multiscale import Multiscale
from p4torch.flows.partial import Partial
from p4torch.flows.path_gradient import path_loss
from p4torch.flows.spline import SplineCoupling
from p4torch.flows.spline_features import Spline
from p4torch.flows.standardize import Standardize
from p4torch.flows.support import Dequantize, InverseSoftplus, Log, Logit
from p4torch.flows.transform import Transform
from p4torch.flows.volume import VolumePreserving

__all__ = [
    "ActNorm2d",
    "AffineCoupling",
    "BentIdentity",
    "Bijection",
    "Chain",
    "ConvCoupling",
    "Dequantize",
    "Flow",
    "FlowDistribution",
    "Glow",
    "Inverse",
    "InverseSoftplus",
    "InvertibleConv1x1",
    "InvertibleLinear",
    "InvertibleMLP",
    "Log",
    "Logit",
    "Multiscale",
    "NormalAndUniform",
    "Partial",
    "Spline",
    "SplineCoupling",
    "Squeeze",
    "StandardNormal",
    "Standardize",
    "Swap",
    "Transform",
    "VolumePreserving",
    "fit_actnorm",
    "for_inference",
    "path_loss",
    "wrapped",
]
