// Package bundleendpoint serves the trust domain's bundle to other trust domains,
// as SPIFFE Federation asks: over HTTPS, to whoever asks, with a server certificate
// that is either of the web's authorities (https_web) or an X.509-SVID of the trust
// domain itself (https_spiffe).
package bundleendpoint
