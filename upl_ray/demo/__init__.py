"""The embedded demo: real handwritten digits, three tiny CLIP backbones, and the code that trained them."""
