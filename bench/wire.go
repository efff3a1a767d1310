package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

// wire asks a gRPC server for unary calls with next to no work of its own, so that on
// two cores the server has one and a measurement of time is one of the server. It speaks
// HTTP/2 (RFC 9113) itself: a client of grpc-go needs as much processor time for a call
// as the server.
type wire struct {
	address     string
	connections int
	inFlight    int    // on each connection, at most
	method      string // "/package.Service/Method"
	request     func(n int) proto.Message
	// answer judges the answer's message as it came.
	answer func(message []byte) error
	// rate is how many calls begin in a second, all connections together, however long
	// answers take; 0 begins one as soon as another ends.
	rate int
}

// wired is what one run of it found.
type wired struct {
	took   []time.Duration // from the call's writing to the end of its answer, sorted
	length time.Duration
}

func (w wired) perSecond() float64 { return float64(len(w.took)) / w.length.Seconds() }

// wireRequests is how many requests are made before a run, which goes through them again
// and again: making them is no part of it.
const wireRequests = 10_000

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
	took := make([][]time.Duration, w.connections)
	errs := make([]error, w.connections)
	begin := time.Now()
	counts := begin.Add(length / 3)
	var wg sync.WaitGroup
	for i := range w.connections {
		wg.Go(func() {
			c, err := w.dial(ctx, 2*length)
			if err != nil {
				errs[i] = err
				return
			}
			defer func() { _ = c.conn.Close() }()
			c.counts = counts
			errs[i] = c.ask(w, bodies, i, begin, counts.Add(length))
			took[i] = c.took
		})
	}
	wg.Wait()
	if err := errors.Join(errors.Join(errs...), ctx.Err()); err != nil {
		return wired{}, err
	}
	out := wired{took: slices.Concat(took...), length: length}
	if len(out.took) == 0 {
		return wired{}, fmt.Errorf("%s: no answer within %s", w.address, length)
	}
	slices.Sort(out.took)
	return out, nil
}

// wireConn is one connection.
type wireConn struct {
	conn   net.Conn
	answer func([]byte) error
	out    *bufio.Writer
	counts time.Time // since when it does
	took   []time.Duration

	mu      sync.Mutex // for what follows and for out
	framer  *http2.Framer
	changed *sync.Cond
	began   map[uint32]time.Time
	message map[uint32][]byte
	window  int // bytes that may still be sent
	failed  error
}

func (w wire) dial(ctx context.Context, length time.Duration) (*wireConn, error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", w.address)
	if err != nil {
		return nil, err
	}
	// Nothing here waits for longer than that.
	if err := conn.SetDeadline(time.Now().Add(length + 20*time.Second)); err != nil {
		return nil, err
	}
	c := &wireConn{
		conn: conn, answer: w.answer, out: bufio.NewWriterSize(conn, 64<<10), window: 65535,
		began: make(map[uint32]time.Time), message: make(map[uint32][]byte),
	}
	c.changed = sync.NewCond(&c.mu)
	c.framer = http2.NewFramer(c.out, bufio.NewReaderSize(conn, 64<<10))
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.framer.SetReuseFrames()
	_, err = c.out.WriteString(http2.ClientPreface)
	// Room for all answers at once: what a stream may get is never asked for again.
	return c, errors.Join(err, c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}), c.framer.WriteWindowUpdate(0, 1<<20), c.out.Flush())
}

// ask calls until end, and waits for the last answers. Of all calls, those whose number
// leaves nth over when divided by the connections are this connection's.
func (c *wireConn) ask(w wire, bodies [][]byte, nth int, begin, end time.Time) error {
	read := make(chan error, 1)
	go func() { read <- c.read() }()
	err := c.write(w, bodies, nth, begin, end)
	c.mu.Lock()
	for err == nil && c.failed == nil && len(c.began) > 0 {
		c.changed.Wait()
	}
	err = errors.Join(err, c.failed)
	c.mu.Unlock()
	_ = c.conn.Close()
	<-read
	return err
}

func (c *wireConn) write(w wire, bodies [][]byte, nth int, begin, end time.Time) error {
	encode := wireHeaders(w.address, w.method)
	stream := uint32(1)
	for n := nth; ; n += w.connections {
		if w.rate > 0 {
			due := begin.Add(time.Duration(n) * time.Second / time.Duration(w.rate))
			if due.After(end) {
				return nil
			}
			time.Sleep(time.Until(due)) //nolint:forbidigo // it is the load's clock, and a timer for each call would cost more than the call
		} else if time.Now().After(end) {
			return nil
		}
		body := bodies[n%len(bodies)]
		c.mu.Lock()
		for c.failed == nil && (len(c.began) >= w.inFlight || c.window < len(body)) {
			c.changed.Wait()
		}
		if c.failed != nil {
			c.mu.Unlock()
			return c.failed
		}
		c.window -= len(body)
		c.began[stream] = time.Now()
		err := errors.Join(
			c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: encode(), EndHeaders: true}),
			c.framer.WriteData(stream, true, body), c.out.Flush())
		c.mu.Unlock()
		if err != nil {
			return err
		}
		stream += 2
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

// read takes answers until the connection ends or one of them is bad.
func (c *wireConn) read() error {
	for {
		f, err := c.framer.ReadFrame()
		c.mu.Lock()
		if err == nil {
			err = c.take(f)
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) || len(c.began) > 0 {
				c.failed = errors.Join(c.failed, err)
			}
			c.changed.Broadcast()
			c.mu.Unlock()
			return err
		}
		c.mu.Unlock()
	}
}

func (c *wireConn) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return errors.Join(c.framer.WriteSettingsAck(), c.out.Flush())
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return errors.Join(c.framer.WritePing(true, f.Data), c.out.Flush())
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			c.window += int(f.Increment)
			c.changed.Broadcast()
		}
	case *http2.DataFrame:
		c.message[f.StreamID] = append(c.message[f.StreamID], f.Data()...)
		if n := len(f.Data()); n > 0 {
			return c.framer.WriteWindowUpdate(0, uint32(n)) //nolint:gosec // a frame is smaller; it leaves with the next call
		}
	case *http2.MetaHeadersFrame:
		if f.StreamEnded() {
			return c.done(f)
		}
	case *http2.RSTStreamFrame:
		return fmt.Errorf("a call was reset: %v", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Errorf("the server ends the connection: %v", f.ErrCode)
	}
	return nil
}

// done is called with the trailers of an answer.
func (c *wireConn) done(f *http2.MetaHeadersFrame) error {
	if began := c.began[f.StreamID]; !began.Before(c.counts) {
		c.took = append(c.took, time.Since(began))
	}
	message := c.message[f.StreamID]
	delete(c.began, f.StreamID)
	delete(c.message, f.StreamID)
	c.changed.Broadcast()
	for _, h := range f.Fields {
		if h.Name == "grpc-status" && h.Value != "0" {
			return fmt.Errorf("grpc-status %s", h.Value)
		}
	}
	if len(message) < 5 {
		return errors.New("an answer without a message")
	}
	return c.answer(message[5:])
}
