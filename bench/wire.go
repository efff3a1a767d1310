package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// wire asks a gRPC server for unary calls with next to no work of its own, so that on
// two cores the server has one and a measurement of time is one of the server. It speaks
// HTTP/2 (RFC 9113) itself: a client of grpc-go needs as much processor time for a call
// as the server.
//
// One thread does all of it and waits in ppoll(2), to which the kernel's clock wakes it
// within microseconds. Timers of Go's scheduler come up to a millisecond late where
// nothing else happens, and then a dozen calls that were due are on their way at once.
type wire struct {
	address     string // of IP and port
	connections int
	inFlight    int    // on each connection, at most
	method      string // "/package.Service/Method"
	request     func(n int) proto.Message
	// answer judges the answer's message as it came.
	answer func(message []byte) error
	// rate is how many calls begin in a second, all connections together, evenly and
	// however long answers take; 0 begins one as soon as another ends.
	rate int
}

// wired is what one run of it found.
type wired struct {
	// took is how long calls took, from their writing to the end of their answer, sorted.
	// Of one that had to wait for answers to others it is from when it was due.
	took   []time.Duration
	length time.Duration
	// late is by how much the other calls were written after they were due, sorted; none
	// without a rate. Those that come late come together, and that is not the server's
	// fault.
	late []time.Duration
	// spells are those that began in each of them, in the order of time.
	spells []spell
}

func (w wired) perSecond() float64 { return float64(len(w.took)) / w.length.Seconds() }

const (
	// wireRequests is how many requests are made before a run, which goes through them
	// again and again: making them is no part of it.
	wireRequests = 10_000
	// wireQuiet is for how long nothing may come of a server that owes an answer.
	wireQuiet = 20 * time.Second
	// wireWindow is how many bytes of answers the server may send. What a stream may get is
	// never extended, what a connection may get as soon as half of it has come.
	wireWindow = 1 << 20
)

// run asks for a third of length to warm up, and then for length, which counts.
func (w wire) run(ctx context.Context, length time.Duration) (wired, error) {
	bodies := make([][]byte, wireRequests)
	for i := range bodies {
		m, err := proto.Marshal(w.request(i))
		if err != nil {
			return wired{}, err
		}
		// gRPC over HTTP/2: not compressed, length, message.
		bodies[i] = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...) //nolint:gosec // far below
	}
	// Nor is collecting our own garbage, some 100 MiB in a few seconds.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The kernel may let a thread sleep 50 us longer to wake several at once.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return wired{}, err
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }()
	l := wireLoad{wire: w, bodies: bodies}
	defer l.close()
	for range w.connections {
		c, err := w.dial()
		if err != nil {
			return wired{}, err
		}
		l.conns = append(l.conns, c)
	}
	l.begin = time.Now()
	l.counts = l.begin.Add(length / 3)
	l.end = l.counts.Add(length)
	l.spells = make([]spell, (length+spellLength-1)/spellLength)
	stop := watchHost()
	err := l.ask(ctx)
	host := stop()
	if err != nil {
		return wired{}, err
	}
	out := wired{late: l.late, length: length, spells: l.spells}
	for i := range out.spells {
		from := l.counts.Add(time.Duration(i) * spellLength)
		out.spells[i].stolen = host.between(from, from.Add(spellLength))
		out.took = append(out.took, out.spells[i].took...)
	}
	if len(out.took) == 0 {
		return wired{}, fmt.Errorf("%s: no answer within %s", w.address, length)
	}
	slices.Sort(out.took)
	slices.Sort(out.late)
	return out, nil
}

// wireLoad is a run under way.
type wireLoad struct {
	wire

	bodies             [][]byte
	conns              []*wireConn
	begin, counts, end time.Time
	n                  int  // of the next call
	held               bool // calls that are due wait for answers
	late               []time.Duration
	spells             []spell
}

// wireConn is one connection.
type wireConn struct {
	fd     int
	out    bytes.Buffer // to be written
	in     bytes.Buffer // read, and no whole frame yet
	framer *http2.Framer
	encode func() []byte
	stream uint32 // of the next call
	window int    // bytes that may still be sent
	got    int    // bytes that the server does not know yet that it may send again
	calls  map[uint32]*wireCall
}

// wireCall is a call without an answer.
type wireCall struct {
	since   time.Time
	message []byte
}

func (l *wireLoad) close() {
	for _, c := range l.conns {
		_ = unix.Close(c.fd)
	}
}

func (w wire) dial() (*wireConn, error) {
	to, err := netip.ParseAddrPort(w.address)
	if err != nil || !to.Addr().Is4() {
		return nil, errors.Join(err, fmt.Errorf("%s: want IP version 4 and port", w.address))
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &wireConn{fd: fd, window: 65535, stream: 1, calls: make(map[uint32]*wireCall), encode: wireHeaders(w.address, w.method)}
	c.framer = http2.NewFramer(&c.out, &c.in)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.framer.SetReuseFrames()
	c.out.WriteString(http2.ClientPreface)
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}),
		unix.SetNonblock(fd, true),
		c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: wireWindow}), c.framer.WriteWindowUpdate(0, wireWindow),
	); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", w.address, err)
	}
	return c, nil
}

// ask calls until the end, and waits for the last answers.
func (l *wireLoad) ask(ctx context.Context) error {
	polled := make([]unix.PollFd, len(l.conns))
	heard := time.Now()
	for ctx.Err() == nil {
		now := time.Now()
		next, err := l.start(now)
		if err != nil {
			return err
		}
		waiting := 0
		for i, c := range l.conns {
			if err := c.flush(); err != nil {
				return err
			}
			waiting += len(c.calls)
			polled[i] = unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN} //nolint:gosec // a descriptor
			if c.out.Len() > 0 {
				polled[i].Events |= unix.POLLOUT
			}
		}
		switch {
		case next.IsZero() && waiting == 0:
			return nil
		case waiting > 0 && now.Sub(heard) > wireQuiet:
			return fmt.Errorf("%s: no answer for %s", l.address, wireQuiet)
		case next.IsZero(), next.Sub(now) > time.Second:
			next = now.Add(time.Second)
		}
		wait := unix.NsecToTimespec(max(int64(time.Until(next)), 0))
		if _, err := unix.Ppoll(polled, &wait, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		for i, c := range l.conns {
			if polled[i].Revents&^unix.POLLOUT == 0 {
				continue
			}
			heard = time.Now()
			if err := c.fill(); err != nil {
				return err
			}
			if err := l.read(c); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// start begins the calls that are due and gives when the next one is, zero for none.
func (l *wireLoad) start(now time.Time) (next time.Time, err error) {
	if l.rate == 0 {
		if now.After(l.end) {
			return time.Time{}, nil
		}
		for _, c := range l.conns {
			for l.may(c) {
				if err := l.call(c, now); err != nil {
					return time.Time{}, err
				}
			}
		}
		return l.end, nil
	}
	for {
		due := l.begin.Add(time.Duration(l.n) * time.Second / time.Duration(l.rate))
		c := l.conns[l.n%len(l.conns)]
		switch {
		case due.After(l.end):
			return time.Time{}, nil
		case due.After(now):
			l.held = false
			return due, nil
		case !l.may(c): // an answer wakes us
			l.held = true
			return now.Add(time.Second), nil
		}
		since := time.Now()
		if l.held {
			since = due
		} else if !due.Before(l.counts) {
			l.late = append(l.late, since.Sub(due))
		}
		if err := l.call(c, since); err != nil {
			return time.Time{}, err
		}
		if err := c.flush(); err != nil {
			return time.Time{}, err
		}
	}
}

// may says whether a connection has room for one more call.
func (l *wireLoad) may(c *wireConn) bool {
	return len(c.calls) < l.inFlight && c.window >= len(l.bodies[l.n%len(l.bodies)])
}

// call puts the next call among what is to be written.
func (l *wireLoad) call(c *wireConn, since time.Time) error {
	body := l.bodies[l.n%len(l.bodies)]
	l.n++
	stream := c.stream
	c.stream += 2
	c.window -= len(body)
	c.calls[stream] = &wireCall{since: since}
	return errors.Join(
		c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: c.encode(), EndHeaders: true}),
		c.framer.WriteData(stream, true, body))
}

// flush writes what the kernel takes.
func (c *wireConn) flush() error {
	for c.out.Len() > 0 {
		n, err := unix.Write(c.fd, c.out.Bytes())
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("write: %w", err)
		default:
			c.out.Next(n)
		}
	}
	return nil
}

// fill reads what is there.
func (c *wireConn) fill() error {
	const atOnce = 64 << 10
	for {
		c.in.Grow(atOnce)
		room := c.in.AvailableBuffer()[:atOnce]
		n, err := unix.Read(c.fd, room)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		if c.in.Write(room[:n]); n < atOnce {
			return nil
		}
	}
}

// wireHeaders encodes the headers of a call. The first time each has its text, then its
// place in the connection's table, as those of any client.
func wireHeaders(address, method string) func() []byte {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	return func() []byte {
		block.Reset()
		for _, f := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":path", method},
			{":authority", address},
			{"content-type", "application/grpc"},
			{"user-agent", "bench"},
			{"te", "trailers"},
		} {
			_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		return block.Bytes()
	}
}

// read takes the whole frames that have come.
func (l *wireLoad) read(c *wireConn) error {
	const header = 9 // of a frame: three bytes of length first
	for {
		b := c.in.Bytes()
		if len(b) < header || len(b) < header+int(b[0])<<16+int(b[1])<<8+int(b[2]) {
			return nil
		}
		f, err := c.framer.ReadFrame()
		if err == nil {
			err = l.take(c, f)
		}
		if err != nil {
			return err
		}
	}
}

func (l *wireLoad) take(c *wireConn, f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return c.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return c.framer.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			c.window += int(f.Increment)
		}
	case *http2.DataFrame:
		call := c.calls[f.StreamID]
		if call == nil {
			return fmt.Errorf("a message for a call that is over: stream %d", f.StreamID)
		}
		call.message = append(call.message, f.Data()...)
		if c.got += len(f.Data()); c.got >= wireWindow/2 {
			n := c.got
			c.got = 0
			return c.framer.WriteWindowUpdate(0, uint32(n)) //nolint:gosec // below 1 MiB and a frame
		}
	case *http2.MetaHeadersFrame:
		if f.StreamEnded() {
			return l.done(c, f)
		}
	case *http2.RSTStreamFrame:
		return fmt.Errorf("a call was reset: %v", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server ends the connection: %v", f.ErrCode)
	}
	return nil
}

// done is called with the trailers of an answer.
func (l *wireLoad) done(c *wireConn, f *http2.MetaHeadersFrame) error {
	call := c.calls[f.StreamID]
	if call == nil {
		return fmt.Errorf("two answers to one call: stream %d", f.StreamID)
	}
	delete(c.calls, f.StreamID)
	if since := call.since.Sub(l.counts); since >= 0 {
		at := min(int(since/spellLength), len(l.spells)-1)
		l.spells[at].took = append(l.spells[at].took, time.Since(call.since))
	}
	for _, h := range f.Fields {
		if h.Name == "grpc-status" && h.Value != "0" {
			return fmt.Errorf("grpc-status %s", h.Value)
		}
	}
	if len(call.message) < 5 {
		return errors.New("an answer without a message")
	}
	return l.answer(call.message[5:])
}
