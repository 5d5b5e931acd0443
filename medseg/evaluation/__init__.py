"""How good a mask is: voxel, surface and lesion measures, and the report that shows them."""
