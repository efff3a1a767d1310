package proctest

import "testing"

// Few says that a test of random cases should have fewer of them: where -short asks for
// that, and under the race detector, which finds nothing in the hundredth case that it had
// not found in the tenth and takes five times as long. The packages that ask run without
// it as well.
func Few() bool { return testing.Short() || raceDetector }
