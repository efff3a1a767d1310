// Command bookinfo is the demonstration application of the local stack: the
// well-known Bookinfo, written anew in Go. One binary plays each of the four
// services:
//
//	bookinfo productpage    the page; asks details and reviews
//	bookinfo details        facts about the book
//	bookinfo reviews        two reviews; --version=v1 without stars, v2 with
//	                        black ones, v3 with red ones (v2 and v3 ask ratings)
//	bookinfo ratings        the stars
//
// It listens on $PORT and reaches the others through $DETAILS, $REVIEWS and
// $RATINGS by way of $http_proxy. It knows nothing of the mesh; all it does for
// it is to pass tracing headers on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bookinfo:", err)
		os.Exit(1)
	}
}

const usage = `usage: bookinfo productpage|details|reviews|ratings [--version=v1]

It plays one service of Bookinfo and listens on 127.0.0.1:$PORT (9080 if not set).
--version is of reviews: v1 without stars, v2 with black, v3 with red ones.
The others are found at $DETAILS, $REVIEWS and $RATINGS, by way of $http_proxy.

example: PORT=9081 bookinfo reviews --version=v2`

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 0:
		return errors.New(usage)
	case args[0] == "-h" || args[0] == "-help" || args[0] == "--help":
		fmt.Println(usage)
		return nil
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	version := fs.String("version", "v1", "the version to play: v1, v2 or v3 of reviews")
	if err := fs.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	app := newApp(*version)
	handlers := map[string]func() http.Handler{
		"productpage": app.productpage, "details": app.details, "reviews": app.reviews, "ratings": app.ratings,
	}
	build, ok := handlers[args[0]]
	if !ok {
		return fmt.Errorf("there is no service %q; want productpage, details, reviews or ratings", args[0])
	}
	l, err := net.Listen("tcp", net.JoinHostPort(env("HOST", "127.0.0.1"), env("PORT", "9080")))
	if err != nil {
		return err
	}
	slog.InfoContext(ctx, "serving", slog.String("service", args[0]), slog.String("version", *version), slog.String("address", l.Addr().String()))
	// The sidecar keeps connections in store; what it sends over one just when that is
	// closed here would fail.
	srv := &http.Server{Handler: build(), ReadHeaderTimeout: 10 * time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return srv.Shutdown(bound)
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
