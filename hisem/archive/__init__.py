"""From scene pairs on disk to tiles of two dates on one grid."""
