// Package proctest runs real programs for the tests of every service: ports that
// nobody else takes, processes that end with their test, and waiting with a bound.
//
// Envoy and Redis have packages of their own on top of it: envoytest and redistest.
package proctest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// firstPort and lastPort bound the ports for tests: below the kernel's ephemeral
// range, so that no outgoing connection takes one, and below the ports that
// `writ up` gives to programs.
const firstPort, lastPort = 10000, 14999

// Port gives a TCP port on which nothing listens at any address, and which no
// other test on this machine is given before t ends.
//
// A port that the kernel chose for a listener which was closed again would not
// do: the kernel gives it to the next outgoing connection as readily.
func Port(t testing.TB) int {
	t.Helper()
	l, port := listen(t, "") // every address, for a moment
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return port
}

// Listen listens on a Port of 127.0.0.1, without a moment in which a program that is
// nobody's test could take it. Who closes the listener may listen there again until t ends.
func Listen(t testing.TB) net.Listener {
	t.Helper()
	l, _ := listen(t, "127.0.0.1")
	return l
}

func listen(t testing.TB, host string) (l net.Listener, port int) {
	t.Helper()
	const span = lastPort - firstPort + 1
	from := rand.IntN(span) //nolint:gosec // spreads tests that run at the same time
	for i := range span {
		port = firstPort + (from+i)%span
		if !claim(t, port) {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", host, port)); err == nil { //nolint:noctx // at once
			return l, port
		}
	}
	t.Fatalf("no free port between %d and %d", firstPort, lastPort)
	return nil, 0
}

// claim holds the UDP port of the same number until t ends. It serves as a lock
// between processes that goes with its owner, and leaves the TCP port alone.
func claim(t testing.TB, port int) bool {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return false
	}
	t.Cleanup(func() { _ = c.Close() })
	return true
}

// Address is 127.0.0.1 with a Port.
func Address(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", Port(t))
}
