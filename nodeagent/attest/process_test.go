package attest_test

import (
	"strings"
	"testing"

	"github.com/writ-mesh/writ/nodeagent/attest"
)

func TestParseStartTime(t *testing.T) {
	rest := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	for _, comm := range []string{"(envoy)", "(a b)", "(evil) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 99 (x)"} {
		got, err := attest.ParseStartTime([]byte("12 " + comm + rest))
		if err != nil || got != 4711 {
			t.Errorf("%s: %d, %v", comm, got, err)
		}
	}
}

func FuzzParseStartTime(f *testing.F) {
	f.Add([]byte("1 (x) S 1"))
	f.Add([]byte(")"))
	f.Add([]byte("1 (x) S " + strings.Repeat("1 ", 30)))
	f.Fuzz(func(t *testing.T, stat []byte) {
		v, err := attest.ParseStartTime(stat)
		if err != nil && v != 0 && !strings.Contains(err.Error(), "value out of range") {
			t.Fatalf("%d and %v", v, err)
		}
	})
}
