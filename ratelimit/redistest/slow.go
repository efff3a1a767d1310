package redistest

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// Slow is a way to a server on which its answers take longer.
type Slow struct {
	address string
	delay   atomic.Int64
}

// StartSlow opens a way to the server, at first without a delay.
func StartSlow(t testing.TB, to *Server) *Slow {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	s := &Slow{address: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.carry(c, to.Address())
		}
	}()
	return s
}

// Address is host:port of the way.
func (s *Slow) Address() string { return s.address }

// Delay sets how much longer answers take from now on.
func (s *Slow) Delay(d time.Duration) { s.delay.Store(int64(d)) }

func (s *Slow) carry(from net.Conn, address string) {
	defer func() { _ = from.Close() }()
	to, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }()
	go func() {
		_, _ = io.Copy(to, from)
		_ = to.Close()
	}()
	answer := make([]byte, 64<<10)
	for {
		n, err := to.Read(answer)
		if err != nil {
			return
		}
		if d := time.Duration(s.delay.Load()); d > 0 {
			<-time.After(d)
		}
		if _, err := from.Write(answer[:n]); err != nil {
			return
		}
	}
}
