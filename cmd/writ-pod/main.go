// Command writ-pod is what a container without a shell needs beside its one
// program. It is static, small, and in every image of Writ:
//
//	writ-pod ready URL    exit 0 if a GET of URL answers 200: for health checks
//	writ-pod request      send the request on standard input, from where this
//	                      container is, and write the answer: for writ check
//	writ-pod hold         do nothing until it is told to end: it keeps the network
//	                      namespace that the containers of a pod share
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/writ-mesh/writ/cmd/internal/pod"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := pod.Run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "writ-pod:", err)
		os.Exit(1)
	}
}
