"""Parts of a flow as one node of the autograd graph each, with their backward passes written out.

`run` fuses layers of a `Chain`, `chain` a whole `InvertibleMLP`, and `knots` finds the bins of a spline. Each has a
plain form of the same function, `..._reference`: tests compare with it, and higher derivatives go through it.

A `Chain` plans a run anew for each pass in which gradients are asked for. Every layer is asked for its `step`; layers
that follow each other and have one are a run, which is fused if all of it fits together (`fusable`):

    Chain     Affine-     Invertible-   Swap     Affine-      BentIdentity      Swap     Affine-
              Coupling    Linear                 Coupling                                Coupling
    step      "coupling"  "linear"      "swap"   "coupling"   None              "swap"   "coupling"
              └────────────── one run ───────────────────┘    by itself         └─── one run ─────┘

    joins     AffineCoupling with SiLU networks, with a context or without, InvertibleLinear of the additive low-rank
              form, Swap of an even number of features
    does not  everything else, subclasses of AffineCoupling, layers with hooks, directions that look at the layer's
              gradient, all layers under transforms of torch.func
    not fused a run without a coupling, with couplings of several shapes or linear layers of several ranks, on other
              devices than the CPU, under autocast, or with other dtypes than that of the points, float32 or float64

The run is one autograd node, `_FusedRun`. Points are columns inside, and the two parts of the features, a and b, are
separate blocks: a coupling replaces b, a swap exchanges them, and a linear layer alone needs them in one buffer:

    forward   x ──►  a ──┬────► a ──┬─────┬──► a ─╮ ╭─► a ──┬────► a ──┬──►  z        log|det| = log 2 · Σ log2 scale
                         ▼          │  W  │        ╳        ▼          │                       + Σ log|det K|
                     b ──e^s+t► b ──┴─────┴──► b ─╯ ╰─► b ──e^s+t► b ──┘                       + constants, log|det A|

    backward  the same from right to left with the gradients of a and b; those of U, V and b of all linear layers are
              finished at once at the end

    saved     x and the layers' tensors, by autograd; and a lease of the `_Workspace`, whose buffers hold
                  of each coupling      a, b, y and dy/dp of the hidden layers, tanh, e^s, b'
                  of each linear layer  x = [a; b] and [z; Vᵀ x; 1]
              The lease ends with the graph, and the buffers serve the next step.

    context   a coupling's networks see [a; c]: what the first layer makes of c is added to its bias, which is then one
              for each point, by autograd, before the node. A linear layer with a context is no step.

    inverse   `Chain.inverse` plans the layers in the reverse order, each with the step of its inverse:
                  "coupling_inverse"    the same node's step with b = (b' - t) e^-s
                  "linear_inverse"      becomes a "linear" step of A⁻¹ with the factors of the Woodbury identity, which
                                        are computed before the node, by autograd
                  "swap"                is its own inverse
"""
