"""The exact forms of all layers: name -> (forward, backward)."""

from runner.exact import convolutions, gates, layers, recurrent

FORMS = {**layers.FORMS, **convolutions.FORMS, **recurrent.FORMS, **gates.FORMS}
