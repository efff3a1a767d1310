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
	const span = lastPort - firstPort + 1
	from := rand.IntN(span) //nolint:gosec // spreads tests that run at the same time
	for i := range span {
		port := firstPort + (from+i)%span
		if !claim(t, port) {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)) //nolint:gosec,noctx // every address, for a moment
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatalf("no free port between %d and %d", firstPort, lastPort)
	return 0
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
