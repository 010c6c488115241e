"""How a framework does it. One folder a framework; they mirror each other file by file and never
import each other."""
