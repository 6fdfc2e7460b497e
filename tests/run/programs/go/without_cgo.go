// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package main

func throughC() string { return "none" }
