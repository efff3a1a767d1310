package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// redisWay is the way from the replicas to Redis, which can be made slow, cut, and
// made to tell another time: a decision script is told the time instead of asking the
// server for it (its first argument is 0 if it is to ask).
type redisWay struct {
	address string
	to      string
	l       net.Listener
	delay   atomic.Int64
	offset  atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func openRedisWay(ctx context.Context, to string) (*redisWay, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &redisWay{address: l.Addr().String(), to: to, l: l, conns: make(map[net.Conn]bool)}
	w.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.carry(c) })
		}
	})
	return w, nil
}

func (w *redisWay) stop() {
	_ = w.l.Close()
	w.cut()
	w.wg.Wait()
}

// cut ends all connections.
func (w *redisWay) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		_ = c.Close()
	}
}

func (w *redisWay) keep(c net.Conn, open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if open {
		w.conns[c] = true
	} else {
		delete(w.conns, c)
		_ = c.Close()
	}
}

func (w *redisWay) carry(from net.Conn) {
	w.keep(from, true)
	defer w.keep(from, false)
	to, err := net.DialTimeout("tcp", w.to, time.Second)
	if err != nil {
		return
	}
	w.keep(to, true)
	defer w.keep(to, false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.ask(from, to)
		_ = to.Close()
	}()
	defer func() { <-done }()
	defer func() { _ = from.Close() }()
	answer := make([]byte, 64<<10)
	for {
		n, err := to.Read(answer)
		if err != nil {
			return
		}
		if d := time.Duration(w.delay.Load()); d > 0 {
			<-time.After(d)
		}
		if _, err := from.Write(answer[:n]); err != nil {
			return
		}
	}
}

// ask carries commands until one side ends.
func (w *redisWay) ask(from io.Reader, to io.Writer) {
	in, out := bufio.NewReaderSize(from, 64<<10), bufio.NewWriterSize(to, 64<<10)
	for {
		args, err := readCommand(in)
		if err != nil {
			return
		}
		if off := time.Duration(w.offset.Load()); off != 0 {
			tellTime(args, time.Now().Add(off))
		}
		writeCommand(out, args)
		if in.Buffered() > 0 {
			continue
		}
		if out.Flush() != nil {
			return
		}
	}
}

// tellTime puts the time into a command that runs a script by its hash: EVALSHA,
// the hash, how many keys, the keys, then the arguments.
func tellTime(args [][]byte, now time.Time) {
	if len(args) < 3 || !bytes.EqualFold(args[0], []byte("evalsha")) {
		return
	}
	keys, err := strconv.Atoi(string(args[2]))
	if first := 3 + keys; err == nil && first < len(args) && string(args[first]) == "0" {
		args[first] = strconv.AppendInt(nil, now.UnixMicro(), 10)
	}
}

const (
	maxArguments = 1 << 16
	maxArgument  = 1 << 20
)

// readCommand reads an array of bulk strings (RESP, redis.io/docs/reference/protocol-spec).
func readCommand(in *bufio.Reader) ([][]byte, error) {
	n, err := readLength(in, '*', maxArguments)
	if err != nil {
		return nil, err
	}
	args := make([][]byte, n)
	for i := range args {
		size, err := readLength(in, '$', maxArgument)
		if err != nil {
			return nil, err
		}
		text := make([]byte, size+2)
		if _, err := io.ReadFull(in, text); err != nil {
			return nil, err
		}
		args[i] = text[:size]
	}
	return args, nil
}

func readLength(in *bufio.Reader, kind byte, most int) (int, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 4 || line[0] != kind {
		return 0, fmt.Errorf("no command: %.20q", line)
	}
	n, err := strconv.Atoi(string(line[1 : len(line)-2]))
	if err != nil || n < 0 || n > most {
		return 0, errors.Join(err, fmt.Errorf("length %.20q", line))
	}
	return n, nil
}

// writeCommand writes to a buffer, whose Flush says if it failed.
func writeCommand(out *bufio.Writer, args [][]byte) {
	_, _ = fmt.Fprintf(out, "*%d\r\n", len(args))
	for _, a := range args {
		_, _ = fmt.Fprintf(out, "$%d\r\n", len(a))
		_, _ = out.Write(a)
		_, _ = out.WriteString("\r\n")
	}
}
