"""One file per op: schema, CPU launcher, fake, gradient and public function, read from top to bottom."""
