"""Look inside a model: metrics, interventions, saliency, their figures, and the attention explorer."""
