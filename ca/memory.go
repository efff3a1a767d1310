package ca

import "runtime"

// ballastSize is how much the heap may grow, in bytes, before the first garbage
// collection. What the authority holds is a few MiB, and what an issuance leaves
// behind is 30 KiB: without it there would be a collection for every hundred of
// them, which together was 8 % of their processor time.
const ballastSize = 32 << 20

// ballast returns memory that counts as heap and is never touched, so that it is not
// resident.
func ballast() []byte { return make([]byte, ballastSize) }

// keep holds memory until it is called.
func keep(b []byte) { runtime.KeepAlive(b) }
