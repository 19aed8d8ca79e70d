"""The embedded demo: real handwritten digits, three tiny CLIP backbones, and the script that trained them."""
